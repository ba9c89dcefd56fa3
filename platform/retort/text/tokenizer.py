"""Characters to ids over a frozen alphabet, with the reserved ids that every text model shares."""

import hashlib
import json
import unicodedata
from collections.abc import Sequence

from retort.errors import DataError

PAD = 0
NULL = 1  # the learned null text of classifier-free guidance; encode() never produces it
UNK = 2
NUM_RESERVED = 3

_PUNCTUATION = " .,;:!?'\"()-"
_LATIN = "abcdefghijklmnopqrstuvwxyz"
# What espeak-ng's IPA of the languages that it knows is written in: letters, then length, stress, tone and other marks.
_IPA = "æçðøħŋœǀǁǂǃɐɑɒɓɔɕɖɗɘəɚɛɜɝɞɟɠɡɢɣɤɥɦɧɨɪɫɬɭɮɯɰɱɲɳɴɵɶɸɹɺɻɽɾʀʁʂʃʄʈʉʊʋʌʍʎʏʐʑʒʔʕʘʙʛʜʝʟʡʢβθχᵻⱱ"
_IPA_MARKS = "ʰʲʷʼˈˌːˑ˞ˠˤ˥˦˧˨˩0123456789\u0303\u0306\u030a\u0324\u0325\u0329\u032a\u032f\u0330\u0361"

# Never edit these: trained models hold positions in them. A new alphabet gets a new name.
ENGLISH_CHARACTERS = _PUNCTUATION + _LATIN
IPA_CHARACTERS = _PUNCTUATION + _LATIN + _IPA + _IPA_MARKS


class CharacterTokenizer:
    """Ids of single characters: id = position in the alphabet + 3; 0 pads, 1 is the null text, 2 is unknown."""

    def __init__(self, alphabet: str) -> None:
        """Freeze ``alphabet``.

        Raises:
            DataError: a character appears twice, or there is none.
        """
        if not alphabet or len(set(alphabet)) != len(alphabet):
            raise DataError(f"the alphabet {alphabet!r} is empty or repeats a character; each stands once")
        self._alphabet = alphabet
        self._ids = {char: index for index, char in enumerate(alphabet, start=NUM_RESERVED)}

    @property
    def alphabet(self) -> str:
        """The characters, in the order of their ids."""
        return self._alphabet

    @property
    def vocabulary_size(self) -> int:
        """Number of ids, the reserved ones included."""
        return NUM_RESERVED + len(self._alphabet)

    def encode(self, text: str) -> list[int]:
        """Return one id a character; an accented letter that is not in the alphabet becomes its plain letter."""
        return [self._id(char) for char in text]

    def _id(self, char: str) -> int:
        known = self._ids.get(char)
        if known is None:
            known = self._ids.get(unicodedata.normalize("NFD", char)[0], UNK)
        return known

    def unknown(self, text: str) -> str:
        """Return the characters of ``text`` that have no id, in order."""
        return "".join(char for char in text if self._id(char) == UNK)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text; padding and the null text vanish, unknown is U+FFFD.

        Raises:
            DataError: an id is outside the vocabulary.
        """
        return "".join(self._char(index) for index in ids)

    def _char(self, index: int) -> str:
        if not 0 <= index < self.vocabulary_size:
            raise DataError(
                f"id {index} is outside the vocabulary of {self.vocabulary_size}; is it another tokenizer's?"
            )
        if index == UNK:
            return "\ufffd"
        return "" if index < NUM_RESERVED else self._alphabet[index - NUM_RESERVED]

    def fingerprint(self) -> str:
        """Return a hash of everything that decides the ids."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]

    def to_json(self) -> str:
        """Return the tokenizer as JSON, for :meth:`from_json`."""
        return json.dumps({"kind": "characters", "num_reserved": NUM_RESERVED, "alphabet": self._alphabet})

    @classmethod
    def from_json(cls, text: str) -> "CharacterTokenizer":
        """Read what :meth:`to_json` wrote.

        Raises:
            DataError: it is not that.
        """
        try:
            tree = json.loads(text)
        except ValueError as error:
            raise DataError(f"the tokenizer is not JSON: {error}") from None
        if not isinstance(tree, dict) or not isinstance(tree.get("alphabet"), str):
            raise DataError("the tokenizer has no alphabet; it was not written by Retort")
        if (tree.get("kind"), tree.get("num_reserved")) != ("characters", NUM_RESERVED):
            raise DataError(
                f"the tokenizer is {tree.get('kind')!r} with {tree.get('num_reserved')} reserved ids; "
                f"expected 'characters' with {NUM_RESERVED}"
            )
        return cls(tree["alphabet"])
