"""How much sound the bytes of an audio file hold. A header may state less, and decoders believe it.

    for part in sound_parts(descriptor, "MP3", frames):
        soundfile.SoundFile(io.BytesIO(part.of(data)))

Three kinds of file hold more than their header states: several files joined end to end (`cat a.mp3 b.mp3`, chained Ogg
streams), an mp3 of variable bitrate without the frame that counts its frames, and one whose count is wrong. A file that
was cut holds less. Only headers are read here: chunks of a wav, pages of Ogg, frames of mp3, and the lengths in the
headers of AIFF, AU, CAF, W64, RF64, NIST and VOC. Of other kinds no length is known here, and they are refused.

Sources: Microsoft's RIFF and RFC 3533 (Ogg), RFC 9639 (FLAC), ISO 11172-3 and 13818-3 (mp3), for the counting frame
LAME's VbrTag.c, EBU Tech 3306 (RF64), Apple's AIFF and CAF specifications, and the headers that libsndfile writes.
"""

from __future__ import annotations

import math
import mmap
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

UNSTATED = 0x7FFF0000  # bytes: a wav that was written into a pipe announces at least as much
SLOPPY = 64  # bytes by which writers of wavs miscount their data, such as the length of the header
HEAD = 1024  # bytes of a wav that are read at once; its data begin within them, as a rule
READ_AHEAD = 1 << 15  # bytes; libFLAC reads 8192 at a time
TAIL = 1024  # bytes after the last chunk of a wav that need no explanation


class IncompleteFile(ValueError):
    """A file that does not hold what its header announces, or holds more that cannot be read."""


@dataclass(frozen=True)
class Part:
    """A sound that is decoded separately: bytes [begin, end) of a file.

    before: bytes that its decoder needs in front. patch: (offset in the file, bytes that replace those there).
    """

    begin: int
    end: int
    before: bytes = b""
    patch: tuple[int, bytes] | None = None

    def of(self, data: bytes | mmap.mmap) -> bytes:
        """The bytes for the decoder."""
        if self.patch is None:
            return self.before + data[self.begin : self.end]
        offset, replacement = self.patch
        return data[self.begin : offset] + replacement + data[offset + len(replacement) : self.end]


def sound_parts(file: int, kind: str, frames: int) -> tuple[Part, ...]:
    """The parts of an audio file; none for a file whose header is right, which is read as it is.

    Args:
        file: descriptor of the open file. Its position stays.
        kind: libsndfile's name of its format.
        frames: samples of each channel that its header states, as libsndfile reports it.

    Raises: IncompleteFile if the file is cut, or has sound behind its end that cannot be read.
    """
    if kind in ("WAV", "WAVEX"):
        check_wav_length(file)
    elif kind in ENDS:
        _check_end(file, kind)
    elif kind not in READERS:
        raise IncompleteFile(f"whether a file of the kind {kind} is whole is not known here; convert it to wav or flac")
    if kind not in READERS:
        return ()
    with mmap.mmap(file, 0, access=mmap.ACCESS_READ) as data:
        return READERS[kind](data, frames)


def _joined(begins: list[int], end: int) -> tuple[Part, ...]:
    """Parts from each beginning to the next; none if there is only one."""
    if len(begins) < 2:
        return ()
    return tuple(Part(begin, after) for begin, after in zip(begins, [*begins[1:], end]))


# --- wav: chunks of a name, a length and their bytes, in a RIFF


def check_wav_length(file: int) -> None:
    """Raise IncompleteFile if a wav is shorter than its header announces, or unknown bytes follow its audio."""
    size, at, has_data = os.fstat(file).st_size, 12, False
    head = _bytes_at(file, 0, HEAD)
    if head[:4] != b"RIFF":
        return
    while at + 8 <= size:
        name, length = struct.unpack("<4sI", head[at : at + 8] if at + 8 <= HEAD else _bytes_at(file, at, 8))
        if not all(32 <= byte < 127 for byte in name) or (has_data and at + 8 + length > size):
            break
        at += 8 + length
        if name == b"data":
            if length >= UNSTATED or not length or at == size:
                return
            if at > size + SLOPPY:
                raise IncompleteFile(f"its header announces {at - size} bytes more than the file has; it was cut")
            has_data = True
        if length % 2 and _bytes_at(file, at, 1) in (b"\0", b""):  # some writers leave out the pad byte
            at += 1
    if has_data and size - at > TAIL:
        rest = _bytes_at(file, at, size - at)
        if rest[:3] not in (b"ID3", b"TAG") and rest.strip(b"\0"):
            raise IncompleteFile(f"{size - at} bytes follow the audio that its header announces")


def _bytes_at(file: int, offset: int, count: int) -> bytes:
    if hasattr(os, "pread"):
        return os.pread(file, count, offset)
    position = os.lseek(file, 0, os.SEEK_CUR)
    os.lseek(file, offset, os.SEEK_SET)
    found = os.read(file, count)
    os.lseek(file, position, os.SEEK_SET)
    return found


# --- AIFF, AU, CAF, W64, RF64, NIST, VOC: where the header says that the file, or its audio, ends


def _check_end(file: int, kind: str) -> None:
    """Raise IncompleteFile if a file is shorter than its header announces, or unknown bytes follow."""
    size = os.fstat(file).st_size
    try:
        end = ENDS[kind](file, size)
    except (struct.error, ValueError, IndexError) as error:
        raise IncompleteFile(f"its header is damaged ({error})") from error
    if end is None:
        return
    if end > size + SLOPPY:
        raise IncompleteFile(f"its header announces {end - size} bytes more than the file has; it was cut")
    if size - end > TAIL and _bytes_at(file, end, size - end).strip(b"\0"):
        raise IncompleteFile(f"{size - end} bytes follow the audio that its header announces")


def _aiff_end(file: int, size: int) -> int | None:
    return 8 + struct.unpack(">I", _bytes_at(file, 4, 4))[0]


def _au_end(file: int, size: int) -> int | None:
    order = ">" if _bytes_at(file, 0, 4) == b".snd" else "<"
    begin, length = struct.unpack(f"{order}II", _bytes_at(file, 4, 8))
    return None if length == 0xFFFFFFFF else begin + length


def _caf_end(file: int, size: int) -> int | None:
    at = 8
    while at + 12 <= size:
        name, length = struct.unpack(">4sq", _bytes_at(file, at, 12))
        if not all(32 <= byte < 127 for byte in name):
            return at
        if length < 0:
            return None  # the audio goes on to the end of the file
        at += 12 + length
    return at


def _w64_end(file: int, size: int) -> int | None:
    return struct.unpack("<Q", _bytes_at(file, 16, 8))[0]


def _rf64_end(file: int, size: int) -> int | None:
    if _bytes_at(file, 12, 4) != b"ds64":
        raise ValueError("no ds64 chunk")
    return 8 + struct.unpack("<Q", _bytes_at(file, 20, 8))[0]


def _nist_end(file: int, size: int) -> int | None:
    begin = int(_bytes_at(file, 8, 8))
    fields = {}
    for line in _bytes_at(file, 16, max(0, begin - 16)).decode("latin-1").split("\n"):
        name, _, value = line.partition(" -i ")
        if value:
            fields[name.strip()] = int(value)
    counted = [fields.get(name) for name in ("sample_count", "channel_count", "sample_n_bytes")]
    if None in counted:
        raise ValueError("it lacks sample_count, channel_count or sample_n_bytes")
    return begin + math.prod(count for count in counted if count is not None)


def _voc_end(file: int, size: int) -> int | None:
    at = struct.unpack("<H", _bytes_at(file, 20, 2))[0]
    while at < size and _bytes_at(file, at, 1) != b"\0":
        at += 4 + int.from_bytes(_bytes_at(file, at + 1, 3), "little")
    return at + 1


ENDS: dict[str, Callable[[int, int], int | None]] = {
    "AIFF": _aiff_end,
    "SVX": _aiff_end,
    "AU": _au_end,
    "CAF": _caf_end,
    "W64": _w64_end,
    "RF64": _rf64_end,
    "NIST": _nist_end,
    "VOC": _voc_end,
}


# --- FLAC


def reads_to_the_end(file: int) -> bool:
    """Whether a decoder of FLAC that shares the descriptor and has read all has come to the end of the bytes.

    It reads some bytes ahead, so the last ones are searched for a second file. The search of a whole file, in
    `sound_parts`, takes as long as a tenth of the decoding.
    """
    size = os.fstat(file).st_size
    if os.lseek(file, 0, os.SEEK_CUR) < size:
        return False
    return b"fLaC" not in _bytes_at(file, max(4, size - READ_AHEAD), READ_AHEAD)


def last_flac_frame(file: int) -> int | None:
    """The number of samples up to the end of the last frame of FLAC, by the header of that frame.

    Bytes that look like a header by chance have a right checksum once in 256 times, so another number than STREAMINFO's
    is a suspicion. None if no header is found near the end.

    Source: RFC 9639, section 9.1.
    """
    size = os.fstat(file).st_size
    least, tail = _bytes_at(file, 8, 2), _bytes_at(file, max(42, size - READ_AHEAD), READ_AHEAD)
    at = len(tail)
    while (at := tail.rfind(b"\xff", 0, at)) >= 0:
        head = tail[at : at + 16]
        if len(head) >= 6 and head[1] & 0xFE == 0xF8 and (end := _frame_end(head, int.from_bytes(least, "big"))):
            return end
    return None


def _frame_end(head: bytes, block: int) -> int | None:
    """The number of samples up to the end of a frame of FLAC; None if the bytes are no header of a frame.

    Args:
        block: samples of a frame, of a stream in which all but the last have equally many.
    """
    lead, at = head[4], 5
    more = 0 if lead < 0x80 else 8 - (~lead & 0xFF).bit_length() - 1  # bytes that continue the number, as in UTF-8
    number = lead if lead < 0x80 else lead & (0x3F >> more)
    for one in head[at : at + more]:
        number, at = number << 6 | one & 0x3F, at + 1
    size, rate = head[2] >> 4, head[2] & 15
    counts = {1: 192, **{n: 576 << (n - 2) for n in range(2, 6)}, **{n: 256 << (n - 8) for n in range(8, 16)}}
    if size in (6, 7):
        counts[size] = int.from_bytes(head[at : at + size - 5], "big") + 1
        at += size - 5
    at += {12: 1, 13: 2, 14: 2}.get(rate, 0)
    if size not in counts or at >= len(head) or _crc8(head[:at]) != head[at]:
        return None
    return (number if head[1] & 1 else number * block) + counts[size]


def _crc8(content: bytes) -> int:
    found = 0
    for one in content:
        found ^= one
        for _ in range(8):
            found = (found << 1 ^ (0x07 if found & 0x80 else 0)) & 0xFF
    return found


def without_count(data: bytes) -> bytes:
    """A file of FLAC whose header leaves the number of samples open, so that a decoder reads all that there are."""
    at = data.find(b"fLaC") + 21  # the number has 36 bits
    return data[:at] + bytes([data[at] & 0xF0]) + bytes(4) + data[at + 5 :]


def _flac_parts(data: mmap.mmap, frames: int) -> tuple[Part, ...]:
    begins, at = [], data.find(b"fLaC")
    while at >= 0:
        if data[at + 4] & 0x7F == 0 and data[at + 5 : at + 8] == b"\0\0\x22":  # STREAMINFO, 34 bytes long
            begins.append(at)
        at = data.find(b"fLaC", at + 4)
    return _joined(begins, len(data))


# --- Ogg: pages; the streams of a new link begin after pages of others


def _ogg_parts(data: mmap.mmap, frames: int) -> tuple[Part, ...]:
    begins, at, end, inside = [0], 0, len(data), False
    while (at := data.find(b"OggS", at)) >= 0 and at + 27 <= end:
        first, segments = data[at + 5] & 2, data[at + 26]
        length = 27 + segments + sum(data[at + 27 : at + 27 + segments])
        if at + length > end:
            raise IncompleteFile(f"its last page is cut: {at + length - end} bytes are missing")
        if first and inside:
            begins.append(at)
        inside = not first
        at += length
    return _joined(begins, end)


# --- mp3: frames, the first of which may hold no sound and a count of the others

KBPS = {
    3: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    2: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}  # of layer III, by the version's bits; version 2.5 (bits 0) has those of 2
HERTZ = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}
COUNTED_BITRATE = 9  # its index: large enough for a counting frame at every sample rate
MISCOUNTED = 2  # frames by which encoders miscount


def _frame_lengths() -> dict[int, int]:
    """Bytes of a frame by the second and third byte of its header."""
    lengths = {}
    for version, rates in HERTZ.items():
        for bitrate, kbps in list(enumerate(KBPS[version or 2]))[1:]:
            for i, rate in enumerate(rates):
                for unprotected in (0, 1):
                    for low in range(4):
                        header = (0xE2 | version << 3 | unprotected) << 8 | bitrate << 4 | i << 2 | low
                        lengths[header] = (144 if version == 3 else 72) * kbps * 1000 // rate + (low >> 1)
    return lengths


LENGTHS = _frame_lengths()


@dataclass
class _Frames:
    """Frames in a row. begin, end: bytes. count: frames with sound. stated: (offset, count) in the counting frame."""

    begin: int
    end: int
    count: int = 0
    stated: tuple[int, int] | None = None


def _mp3_parts(data: mmap.mmap, frames: int) -> tuple[Part, ...]:
    found = list(_mp3_streams(data))
    if not found:
        return ()
    samples = 1152 if data[found[0].begin + 1] >> 3 & 3 == 3 else 576
    if len(found) == 1 and found[0].stated is None and abs(frames - found[0].count * samples) <= samples:
        return ()
    parts = tuple(_mp3_part(data, stream) for stream in found)
    return () if len(parts) == 1 and not parts[0].before and not parts[0].patch else parts


def _mp3_part(data: mmap.mmap, stream: _Frames) -> Part:
    if stream.stated is None:
        return Part(stream.begin, stream.end, before=_counting_frame(data, stream))
    offset, stated = stream.stated
    if stated > stream.count + MISCOUNTED:
        raise IncompleteFile(f"its header announces {stated} frames of audio, and {stream.count} are there")
    if stated >= stream.count - MISCOUNTED:
        return Part(stream.begin, stream.end)
    return Part(stream.begin, stream.end, patch=(offset, stream.count.to_bytes(4, "big")))


def _counting_frame(data: mmap.mmap, stream: _Frames) -> bytes:
    """A frame without sound that states the number of frames, for a stream that has none."""
    _, second, third, fourth = data[stream.begin : stream.begin + 4]
    header = bytes([0xFF, second | 1, COUNTED_BITRATE << 4 | third & 0x0C, fourth])
    tag = bytes(_tag_offset(header) - 4) + b"Xing" + (1).to_bytes(4, "big") + stream.count.to_bytes(4, "big")
    return (header + tag).ljust(LENGTHS[header[1] << 8 | header[2]], b"\0")


def _tag_offset(header: bytes) -> int:
    """Where a frame's counting tag begins: behind the header and the side information."""
    mono = header[3] >> 6 == 3
    return 4 + ((17 if mono else 32) if header[1] >> 3 & 3 == 3 else (9 if mono else 17))


def _mp3_streams(data: mmap.mmap) -> Iterator[_Frames]:
    """The streams of an mp3: a new one begins at each counting frame, and where version or sample rate change."""
    stream: _Frames | None = None
    kind, at = (0, 0), 0
    while (at := _next_frame(data, at, stream is not None)) >= 0:
        header = data[at : at + 4]
        length = LENGTHS[header[1] << 8 | header[2]]
        tag = at + _tag_offset(header)
        counting = data[tag : tag + 4] in (b"Xing", b"Info")
        if stream is None or counting or kind != (header[1] & 0x18, header[2] & 0x0C):
            if stream is not None:
                yield stream
            stream, kind = _Frames(at, at), (header[1] & 0x18, header[2] & 0x0C)
        if counting and data[tag + 7] & 1:
            stream.stated = tag + 8, int.from_bytes(data[tag + 8 : tag + 12], "big")
        stream.count += not counting
        at += length
        stream.end = at
    if stream is not None:
        yield stream


def _next_frame(data: mmap.mmap, at: int, following: bool) -> int:
    """Where the next whole frame begins, from `at`; -1 if there is none. Tags and damage are skipped.

    following: a frame ends at `at`, so one that begins there needs no confirmation by the next.
    """
    end, begin = len(data), at
    while at >= 0 and at + 4 <= end:
        if data[at : at + 3] == b"ID3":
            size = 0
            for byte in data[at + 6 : at + 10]:
                size = size << 7 | byte & 0x7F
            at += 10 + size + (10 if data[at + 5] & 0x10 else 0)
            continue
        after = at + _length_at(data, at)
        confirmed = (following and at == begin) or after == end or _length_at(data, after)
        if at < after <= end and confirmed:
            return at
        marks = [found for found in (data.find(b"\xff", at + 1), data.find(b"ID3", at + 1)) if found >= 0]
        at = min(marks, default=-1)
    return -1


def _length_at(data: mmap.mmap, at: int) -> int:
    """Bytes of the frame at an offset; 0 if none begins there."""
    if at + 4 > len(data) or data[at] != 0xFF:
        return 0
    return LENGTHS.get(data[at + 1] << 8 | data[at + 2], 0)


READERS: dict[str, Callable[[mmap.mmap, int], tuple[Part, ...]]] = {
    "FLAC": _flac_parts,
    "OGG": _ogg_parts,
    "MP3": _mp3_parts,
}
