"""A checkpoint of another model is refused with what does not fit, whoever wrote it."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from retort.errors import StorageError
from retort.orchestration.train.master_weights import Piece, PieceReader


def reader(folder: Path, pieces: list[dict[str, torch.Tensor]], starts: list[dict[str, int]]) -> PieceReader:
    files = []
    for number, tensors in enumerate(pieces):
        files.append(folder / f"rank_{number:05d}.safetensors")
        save_file({f"student/fp32/{name}": tensor for name, tensor in tensors.items()}, files[-1])
    return PieceReader(files, starts, prefix="student/")


def piece(name: str, start: int, numel: int) -> Piece:
    owner = torch.nn.Parameter(torch.zeros(numel))
    return Piece(name, owner, start, numel, owner, 0)


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_pieces_of_any_number_of_ranks_make_up_those_of_another(tmp_path: Path, num_ranks: int) -> None:
    whole = torch.arange(12.0)
    size = 12 // num_ranks
    parts = [{"w": whole[n * size : (n + 1) * size].clone()} for n in range(num_ranks)]
    found = reader(tmp_path, parts, [{"w": n * size} for n in range(num_ranks)])
    for start, numel in ((0, 12), (0, 5), (5, 7), (3, 6)):
        target = torch.full((numel,), -1.0)
        found.read_into(target, "fp32", piece("w", start, numel))
        assert torch.equal(target, whole[start : start + numel])


@pytest.mark.parametrize(
    ("name", "numel", "told"), [("w", 16, "12 of 16"), ("v", 4, "0 of 4")], ids=["of another size", "of another name"]
)
def test_what_another_model_wrote_is_refused(tmp_path: Path, name: str, numel: int, told: str) -> None:
    found = reader(tmp_path, [{"w": torch.arange(12.0)}], [{"w": 0}])
    with pytest.raises(StorageError, match=rf"holds {told} elements of student/fp32/{name}; .* another model") as error:
        found.read_into(torch.zeros(numel), "fp32", piece(name, 0, numel))
    assert error.value.exit_code == 5
