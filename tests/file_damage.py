"""Damage the contents of files, as disks, transfers and ill will do.

In: bytes, a generator and other bytes to splice in. Out: other bytes. What lies in a container (a
zip archive, gzip, the header of a .safetensors file, JSON) is damaged there, too, and the container
made whole again: otherwise its checksums would notice all damage before a reader does.
"""

import gzip
import io
import json
import struct
import warnings
import zipfile

_HOLE = "here lies the damage"
_LONGEST_RUN = 64  # bytes
_HOSTILE_JSON = (
    *("null", "true", "0", "1", "-1", "0.5", "[]", "{}", '""', '"x"', "NaN", "1e999", "-1e999"),
    *("255", "65536", str(2**31), str(2**32), str(2**63), "1e300", "1" + "0" * 400),
    *("9" * 5000, "[" * 100_000 + "]" * 100_000, '{"a":' * 900 + "1" + "}" * 900),
    *(json.dumps("a" * 3000), json.dumps("two\nlines"), r'"\ud800"', r'"\u0000"', '"../../x"'),
    *(json.dumps("__import__('os').abort()"), "[[]]", "[1, 2]", "[null]", '{"x": null}'),
)


def damage(content, generator, donors):
    """Return damaged bytes.

    Args:
        content: the bytes of a whole file.
        generator: numpy's random generator.
        donors: bytes of which pieces are spliced in.
    """
    if generator.random() < 0.7:
        for kind in (_damage_zip, _damage_gzip, _damage_safetensors, _damage_json):
            damaged = kind(content, generator, donors)
            if damaged is not None:
                return damaged
    return _damage_bytes(content, generator, donors)


def _pick(generator, values):
    """One of a sequence, as it is: numpy's own choice makes an array of them first."""
    return values[generator.integers(len(values))]


def _damage_bytes(content, generator, donors):
    kind = generator.integers(6)
    start = int(generator.integers(len(content) + 1))
    stop = start + int(generator.integers(1, _LONGEST_RUN))
    if kind == 0:  # cut off
        return content[:start]
    if kind == 1:  # cut out
        return content[:start] + content[stop:]
    if kind == 2:
        run = _pick(generator, (b"\xff", b"\x00")) * (stop - start)
        return content[:start] + run + content[stop:]
    if kind == 3 and content:
        damaged = bytearray(content)
        for place in generator.integers(len(damaged), size=generator.integers(1, 9)):
            damaged[place] ^= 1 << generator.integers(8)
        return bytes(damaged)
    donor = content if kind == 4 or not donors else _pick(generator, donors)
    place = int(generator.integers(len(donor) + 1))
    length = int(generator.integers(1, max(2, len(donor))))
    end = _pick(generator, (start, start + length))  # inserted, or in the place of what was there
    return content[:start] + donor[place : place + length] + content[end:]


def _damage_zip(content, generator, donors):
    if not content.startswith(b"PK"):
        return None
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = [(entry, archive.read(entry)) for entry in archive.infolist()]
    chosen = generator.integers(len(entries))
    # Of an archive with one large array, the small entries and the headers are what decides.
    entry, part = entries[chosen]
    if generator.random() < 0.5:
        part = damage(part[:200], generator, donors) + part[200:]
    else:
        part = damage(part, generator, donors)
    entries[chosen] = (entry, part)
    kind = generator.integers(8)
    if kind == 0:
        entries.append(_pick(generator, entries))
    elif kind == 1:
        del entries[generator.integers(len(entries))]
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of entries that are there twice
        for entry, part in entries:
            archive.writestr(entry.filename, part, entry.compress_type)
    return file.getvalue()


def _damage_gzip(content, generator, donors):
    if not content.startswith(b"\x1f\x8b"):
        return None
    whole = gzip.decompress(content)
    return gzip.compress(damage(whole[:16], generator, donors) + whole[16:])


def _damage_safetensors(content, generator, donors):
    length = struct.unpack("<Q", content[:8])[0] if len(content) > 8 else 0
    if not 0 < length < len(content) or content[8:9] != b"{":
        return None
    header = damage(content[8 : 8 + length], generator, donors)
    return struct.pack("<Q", len(header)) + header + content[8 + length :]


def _damage_json(content, generator, donors):
    if not content.startswith((b"{", b"[")):
        return None
    text = content.decode()
    try:
        return _damage_document(text, generator).encode()
    except json.JSONDecodeError:
        lines = text.splitlines(keepends=True)
        chosen = generator.integers(len(lines))
        lines[chosen] = f"{_damage_document(lines[chosen], generator)}\n"
        return "".join(lines).encode()


def _damage_document(text, generator):
    """Replace one value of a JSON document, remove it, or put another one's in its place."""
    document = json.loads(text)
    places = list(_places(document))
    if not places:
        return _pick(generator, _HOSTILE_JSON)
    parent, key = _pick(generator, places)
    kind = generator.integers(8)
    if kind == 0:
        del parent[key]
    elif kind == 1:
        other, other_key = _pick(generator, places)
        parent[key] = json.loads(json.dumps(other[other_key]))
    elif kind == 2 and isinstance(parent, dict):
        name = _pick(generator, (key.upper(), "x" * 3000, "two\nlines", ""))
        parent[name] = parent.pop(key)
    else:
        parent[key] = _HOLE
    return json.dumps(document).replace(json.dumps(_HOLE), _pick(generator, _HOSTILE_JSON))


def _places(value):
    """Yield the container and the key of every value within a document."""
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])
