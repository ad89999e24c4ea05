"""Regions of the system's shared memory that a caller on this machine has put tensors into, or wants results in.

A region is mapped when it is registered and stays so until it is unregistered; requests that use it then keep it until
they are done.
"""

from __future__ import annotations

import mmap
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from service.errors import InvalidOption, MalformedTensor, NotFound, clip, counted
from service.ops.request import shown
from service.wire.oip_codec import LARGEST_INTEGER, Place

FOLDER = Path("/dev/shm")  # noqa: S108  # where Linux shows POSIX shared memory
"""Where shared memory objects are files; nothing else on the machine can be reached."""

MOST_REGIONS = 1024
"""Regions held at once."""

_KEY = re.compile(r"/?[A-Za-z0-9_-][A-Za-z0-9._-]{0,254}")
"""Name of a shared memory object: nothing that leads to another folder, nothing hidden."""
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._:-]{0,127}")


@dataclass(frozen=True, slots=True)
class Region:
    """A registered part of a shared memory object: `size` bytes from byte `offset`."""

    name: str
    key: str
    offset: int
    size: int
    mapping: mmap.mmap

    @property
    def memory(self) -> memoryview:
        """The bytes of the region; a view keeps the mapping."""
        return memoryview(self.mapping)[self.offset : self.offset + self.size]


class SharedMemory:
    """The regions that callers have registered, by name."""

    def __init__(self) -> None:
        self._regions: dict[str, Region] = {}

    def register(self, name: str, key: object, offset: object, size: object) -> None:
        """Map a part of the shared memory object `key` as the region `name`; raises InvalidOption."""
        if not _NAME.fullmatch(name):
            raise _invalid("region", "1 to 128 letters, digits and ._:-", name)
        if not isinstance(key, str) or not _KEY.fullmatch(key):
            raise _invalid("key", "the name of a shared memory object, letters, digits and ._-", key)
        begin, length = _integer("offset", offset, least=0), _integer("byte_size", size, least=1)
        if name in self._regions:
            raise _invalid("region", "a name that is not registered yet", name)
        if len(self._regions) >= MOST_REGIONS:
            raise _invalid("region", f"one of at most {MOST_REGIONS}; unregister others first", name)
        self._regions[name] = Region(name, key, begin, length, _map(key, begin + length))

    def unregister(self, name: str | None = None) -> None:
        """Forget the region `name`, or all of them; what is not registered is fine, too."""
        if name is None:
            self._regions.clear()
        else:
            self._regions.pop(name, None)

    def regions(self, name: str | None = None) -> list[Region]:
        """Return the region `name`, or all of them; raises NotFound."""
        if name is None:
            return list(self._regions.values())
        if name not in self._regions:
            raise NotFound("region", name=clip(name))
        return [self._regions[name]]

    def view(self, place: Place, tensor: str, needed: int) -> memoryview:
        """Return the `needed` bytes at a place, for the tensor named; raises MalformedTensor when there are fewer."""
        region = self._regions.get(place.region)
        if region is None:
            raise MalformedTensor("region", pointer="/" + tensor, name=tensor, got=clip(place.region))
        there = region.mapping.size() - region.offset  # touching what its owner has cut off would end this process
        if (usable := max(0, min(place.size, min(region.size, there) - place.offset))) < needed:
            raise MalformedTensor(
                "region-bytes",
                pointer="/" + tensor,
                name=tensor,
                needed=counted(needed, "byte"),
                offset=place.offset,
                region=clip(place.region),
                got=counted(usable, "byte"),
            )
        return region.memory[place.offset : place.offset + needed]


def _map(key: str, size: int) -> mmap.mmap:
    """Map the first `size` bytes of a shared memory object. Views keep the mapping; with the last of them it ends."""
    expected = f"the name of a shared memory object of at least {counted(size, 'byte')}, to be read and written"
    try:
        descriptor = os.open(FOLDER / key.removeprefix("/"), os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise _invalid("key", expected, key) from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size < size:
            raise _invalid("key", expected, key)
        return mmap.mmap(descriptor, size)
    except (OSError, ValueError, OverflowError) as error:
        raise _invalid("key", expected, key) from error
    finally:
        os.close(descriptor)


def _integer(name: str, value: object, *, least: int) -> int:
    if type(value) is not int or not least <= value <= LARGEST_INTEGER:
        raise _invalid(name, f"an integer from {least} to {LARGEST_INTEGER}", value)
    return value


def _invalid(name: str, expected: str, got: object) -> InvalidOption:
    return InvalidOption("value", pointer="/" + name, name=name, expected=expected, got=shown(got))
