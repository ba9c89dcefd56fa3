"""Names of files that belong to ids, systems and whatever else people name: theirs, as far as that is safe."""

import hashlib
import json
import re

_PLAIN = re.compile(r"[a-z0-9]([a-z0-9._-]*[a-z0-9])?")
_NOT_SAFE = re.compile(r"[^A-Za-z0-9._-]+")
_JOINT, _MARK = "--", "~"
_MAX_PLAIN, _MAX_LEGIBLE = 160, 80
_HASH_DIGITS = 16


def file_name(*names: str) -> str:
    """One part of a path, without a suffix, that belongs to these names and to no others.

    What is plain (small letters, digits, ``.``, ``_`` and ``-`` within it, not too long) stays as it is, and several
    names are joined by ``--``. Of anything else the legible part is kept and a hash is added after ``~``: no slash, dot
    or control character leads anywhere, no length is too long, and names that differ in capitals alone have two files
    where the file system does not tell them apart.
    """
    text = _JOINT.join(names)
    if len(text) <= _MAX_PLAIN and all(_PLAIN.fullmatch(name) and _JOINT not in name for name in names):
        return text
    digest = hashlib.sha256(json.dumps(names).encode()).hexdigest()[:_HASH_DIGITS]
    return _NOT_SAFE.sub("_", text)[:_MAX_LEGIBLE].lstrip("._-") + _MARK + digest
