"""The data of every method on codec language models: a token set, whether a model fits it, a rank's batches."""

from collections.abc import Sequence
from pathlib import Path

from retort.audio.codec import outside_codec
from retort.data.batches import CodebookLayout
from retort.data.stream import BatchConfig, BatchStream
from retort.data.tokens import TokenRow, TokenSet, TokenSetDescription, refuse_mismatch
from retort.errors import DataError
from retort.models.codec_lm import CodecLMConfig
from retort.models.weights import Lineage, LoadedCodecLM
from retort.models.zero_shot_lineage import ZeroShotLineage
from retort.store.artifact import read_artifact
from retort.store.results import result_of
from retort.training.seam import Place

_CURE = (
    "use the token set that it was trained on, or prepare the data with its codec and text front-end, "
    "or train a teacher on these data"
)


def check_tokens(data: Path) -> tuple[TokenSet, str]:
    """Verify a token set that a model will be trained on; returns it with its artifact's fingerprint.

    Raises:
        DataError: it is missing, has nothing to train on, or lacks what the trained model needs to speak.
        StorageError: it is damaged.
    """
    artifact = read_artifact(result_of(data))
    tokens = TokenSet.open(artifact.path)
    parts = ("text",) if outside_codec(tokens.description.codec_fingerprint) else ("codec", "text")
    lacking = [part for part in parts if not (artifact.path / part).is_dir()]
    if lacking:
        raise DataError(f"{data} lacks its {' and '.join(lacking)} folder; run `retort prepare` again")
    if not tokens.split("train"):
        raise DataError(f"{data}: the train split is empty; check `splits` in the run file of `retort prepare`")
    return tokens, artifact.fingerprint


def check_fits_tokens(loaded: LoadedCodecLM, tokens: TokenSetDescription, *, who: str, data: Path) -> None:
    """Refuse a model of other tokens than these.

    Args:
        loaded: the model.
        tokens: what it should speak.
        who: what to call the model, and its folder.
        data: folder of the tokens.

    Raises:
        DataError: the codec, the text front-end or the codebooks differ; both values and the cure are named.
    """
    config, where = loaded.model.config, str(data)
    check_made_with(loaded.lineage, tokens, who=who, data=data)
    refuse_mismatch(
        "number or size of the codebooks",
        who,
        f"{config.num_codebooks} codebooks of {config.codebook_size}",
        where,
        f"{tokens.num_codebooks} codebooks of {tokens.codebook_size}",
        _CURE,
    )


def check_made_with(lineage: Lineage, tokens: TokenSetDescription, *, who: str, data: Path) -> None:
    """Refuse a model, of whatever family, whose codec or text front-end is not that of these tokens.

    A zero-shot model reads texts and hears recordings, whatever their tokens are.

    Raises:
        DataError: both values and the cure are named.
    """
    if isinstance(lineage, ZeroShotLineage):
        return
    refuse_mismatch("codec", who, lineage.codec_fingerprint, str(data), tokens.codec_fingerprint, _CURE)
    refuse_mismatch("text front-end", who, lineage.text_fingerprint, str(data), tokens.text_fingerprint, _CURE)


def stream_of(
    rows: Sequence[TokenRow],
    model: CodecLMConfig,
    batch: BatchConfig,
    *,
    seed: int,
    place: Place,
    prompt_rows: Sequence[TokenRow] | None = None,
) -> BatchStream:
    """One rank's batches, laid out for a model."""
    layout = CodebookLayout(model.codebook_size, model.codebook_delays)
    return BatchStream(
        rows, layout, batch, seed=seed, rank=place.rank, world_size=place.world_size, prompt_rows=prompt_rows
    )
