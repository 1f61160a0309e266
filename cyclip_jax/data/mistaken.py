"""What a file is that is not what its name says, by its first bytes."""

GIT_LFS = b"version https://git-lfs.github.com/spec/"
_BEGINNINGS = (
    (
        GIT_LFS,
        "it is a pointer of Git LFS and not the file itself; run git lfs pull",
    ),
    (b"\x1f\x8b", "it is compressed with gzip as a whole; unpack it with gunzip < FILE > NEW"),
    (b"BZh91AY&SY", "it is compressed with bzip2 as a whole; unpack it with bunzip2 < FILE > NEW"),
    (b"\xfd7zXZ\0", "it is compressed with xz as a whole; unpack it with unxz < FILE > NEW"),
    (
        b"\x28\xb5\x2f\xfd",
        "it is compressed with Zstandard as a whole; unpack it with unzstd < FILE > NEW",
    ),
    (b"PK\x03\x04", "it is a zip archive or a spreadsheet; unpack it, or save it as CSV"),
    (b"\xff\xfe\0\0", "it is UTF-32 text; convert it with iconv -f UTF-32 -t UTF-8 < FILE > NEW"),
    (b"\0\0\xfe\xff", "it is UTF-32 text; convert it with iconv -f UTF-32 -t UTF-8 < FILE > NEW"),
    (b"\xff\xfe", "it is UTF-16 text; convert it with iconv -f UTF-16 -t UTF-8 < FILE > NEW"),
    (b"\xfe\xff", "it is UTF-16 text; convert it with iconv -f UTF-16 -t UTF-8 < FILE > NEW"),
)
LONGEST = max(len(beginning) for beginning, _ in _BEGINNINGS)  # bytes that are looked at


def mistaken_for(head: bytes) -> str | None:
    """What a file is, and what to do, where its first bytes show that it is something else.

    Args:
      head: the first bytes of the file, LONGEST of them or more.

    Returns:
      Half a sentence, such as "it is a pointer of Git LFS and not the file itself; run git lfs
      pull", or None.
    """
    return next((kind for beginning, kind in _BEGINNINGS if head.startswith(beginning)), None)
