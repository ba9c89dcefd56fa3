import pytest

from retort.errors import ConfigError
from retort.models.layer_choice import LayerChoice


def test_a_choice_survives_its_file_and_says_what_it_lacks() -> None:
    choice = LayerChoice(
        teacher_fingerprint="t", num_layers=4, criterion="wer", num_kept=2,
        kept={"wer": {4: (0, 1, 2, 3), 2: (0, 3)}, "random": {2: (1, 2)}}, recogniser="r",
    )  # fmt: skip
    back = LayerChoice.model_validate_json(choice.model_dump_json())
    assert back == choice
    assert (back.layers(), back.layers("random"), back.layers(num_kept=4)) == ((0, 3), (1, 2), (0, 1, 2, 3))
    with pytest.raises(ConfigError, match="no choice of 3 layers by wer; it has 2, 4"):
        back.layers(num_kept=3)
    with pytest.raises(ConfigError, match="no choice of 2 layers by kl"):
        back.layers("kl")
