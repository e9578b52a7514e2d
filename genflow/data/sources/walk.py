"""List a folder: its pictures, its other files by kind, and the system files that are passed over.

- Hidden files and folders (`.name`) are passed over, and so are the folders and files that operating systems, archives,
  network storages and photo managers leave in a folder: thumbnails, recycle bins, snapshots and metadata.
- Links are followed, also to other file systems. A linked folder is entered once, and never if it contains the source,
  so there are no loops.
- A file is a picture if it has the suffix of an image format, or if its first bytes are those of one.
"""

import fnmatch
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

from genflow.data import images
from genflow.data.skipped import AVIF, HEIC
from genflow.data.sources.base import printable
from genflow.errors import DataError

KINDS_LISTED = 20  # reasons in `Listing.skipped`; the rest is one sum
TABLES = (".parquet", ".arrow", ".feather", ".ipc")
ARRAYS = (".npz", ".npy")

SYSTEM = {  # patterns of names in lower case, and what they are; the first match counts
    "@eadir": "@eaDir folder (Synology thumbnails)",
    "synophoto_*": "SYNOPHOTO file (Synology thumbnails)",
    ".@__thumb": ".@__thumb folder (QNAP thumbnails)",
    ".@upload_cache": ".@upload_cache folder (QNAP)",
    "@recently-snapshot": "@Recently-Snapshot folder (QNAP snapshots)",
    "#snapshot": "#snapshot folder (Synology snapshots)",
    ".snapshot": ".snapshot folder (snapshots of a network storage)",
    ".snapshots": ".snapshots folder (snapshots)",
    ".zfs": ".zfs folder (snapshots)",
    "@recycle": "@Recycle folder (deleted files)",
    "#recycle": "#recycle folder (deleted files)",
    "$recycle.bin": "$RECYCLE.BIN folder (deleted files)",
    ".trash": ".Trash folder (deleted files)",
    ".trash-*": ".Trash folder (deleted files)",
    ".trashes": ".Trashes folder (deleted files)",
    "network trash folder": "Network Trash folder (deleted files)",
    ".dtrash": ".dtrash folder (deleted files of digiKam)",
    ".stversions": ".stversions folder (old versions of Syncthing)",
    "@tmp": "@tmp folder (Synology)",
    "system volume information": "System Volume Information folder (Windows)",
    "lost+found": "lost+found folder (file system check)",
    "__macosx": "__MACOSX folder (macOS metadata)",
    ".appledouble": ".AppleDouble folder (macOS metadata)",
    "._*": "._* file (macOS metadata)",
    ".ds_store": ".DS_Store file (macOS)",
    "icon\r": "Icon file (macOS)",
    ".spotlight-v100": ".Spotlight-V100 folder (macOS search index)",
    ".fseventsd": ".fseventsd folder (macOS)",
    "temporary items": "Temporary Items folder (macOS)",
    "thumbs.db": "Thumbs.db file (Windows thumbnails)",
    "ehthumbs.db": "ehthumbs.db file (Windows thumbnails)",
    "ehthumbs_vista.db": "ehthumbs.db file (Windows thumbnails)",
    "zbthumbnail.info": "ZbThumbnail.info file (Canon thumbnails)",
    "desktop.ini": "desktop.ini file (Windows)",
    ".thumbnails": ".thumbnails folder (thumbnails)",
    ".thumbs": ".thumbs folder (thumbnails)",
    ".picasaoriginals": ".picasaoriginals folder (originals of edited pictures)",
    "*.lrdata": "Lightroom previews folder (.lrdata)",
    "*.lrcat-data": "Lightroom data folder (.lrcat-data)",
    ".bridgecache": ".BridgeCache file (Adobe Bridge thumbnails)",
    ".bridgecachet": ".BridgeCache file (Adobe Bridge thumbnails)",
    "picasa.ini": "Picasa.ini file",
    ".picasa.ini": "Picasa.ini file",
    "ipod photo cache": "iPod Photo Cache folder (thumbnails)",
    ".ipynb_checkpoints": ".ipynb_checkpoints folder (Jupyter)",
    "__pycache__": "__pycache__ folder (Python)",
    ".git": ".git folder (versions)",
    ".cache": ".cache folder",
    "*~": "backup file (~)",
}
LIBRARIES = (".photoslibrary", ".aplibrary", ".photolibrary")  # Apple's; originals/ or Masters/ holds the pictures
LIBRARY_FOLDERS = ("resources", "private", "database", "scopes", "thumbnails", "previews", "external")

RAW = frozenset((
    *(".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dng", ".erf", ".iiq", ".kdc", ".mef", ".mrw", ".nef", ".nrw", ".orf"),
    *(".pef", ".raf", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f"),
))  # many are TIFF files whose first picture is a thumbnail
VIDEOS = frozenset((".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".wmv", ".mpg", ".mpeg", ".3gp", ".mts", ".m2ts"))
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar")
OTHER_PICTURES = {
    **dict.fromkeys((".heic", ".heif", ".hif"), HEIC),
    **dict.fromkeys((".avif", ".avifs"), AVIF),
    **dict.fromkeys((".svg", ".svgz"), "SVG file"),
    **dict.fromkeys((".psd", ".psb"), "Photoshop file"),
    **dict.fromkeys((".jp2", ".j2k", ".jpf", ".jpx"), "JPEG 2000 file"),
    **dict.fromkeys((".dcm", ".dicom"), "DICOM file"),
    **dict.fromkeys((".lrcat",), "Lightroom catalogue"),
    **dict.fromkeys((".ppm", ".pgm", ".pbm", ".pnm"), "Netpbm file"),
    ".jxl": "JPEG XL file", ".pdf": "PDF file", ".eps": "EPS file", ".ai": "Illustrator file", ".xcf": "GIMP file",
    ".exr": "OpenEXR file", ".hdr": "HDR file", ".tga": "TGA file", ".ico": "ICO file", ".icns": "ICNS file",
}


@dataclass
class Listing:
    """The files below a folder.

    Args:
        root: the absolute path of the folder.
        pictures: (relative path, bytes, mtime in nanoseconds) of every picture.
        others: the kind of every other file by its relative path.
        passed: system files, hidden files and links that were passed over, by reason.
    """

    root: str
    pictures: list[tuple[str, int, int]] = field(default_factory=list)
    others: dict[str, str] = field(default_factory=dict)
    passed: Counter[str] = field(default_factory=Counter)

    def with_suffix(self, suffixes: tuple[str, ...]) -> list[str]:
        """The other files with one of some suffixes, in lower case."""
        return [name for name in self.others if name.lower().endswith(suffixes)]

    def skipped(self, used: Iterable[str] = ()) -> dict[str, int]:
        """The number of skipped files by reason, most frequent first.

        Args:
            used: other files that the source reads.
        """
        used = frozenset(used)
        counts = self.passed + Counter(kind for name, kind in self.others.items() if name not in used)
        shown = dict(counts.most_common(KINDS_LISTED))
        if rest := counts.total() - sum(shown.values()):
            shown["file of other kinds"] = rest
        return shown


_known: ContextVar[Listing | None] = ContextVar("_known", default=None)


@contextmanager
def remembered(root: str) -> Iterator[Listing]:
    """List a folder; inside the block, `list_folder` of the same folder does not read it again."""
    token = _known.set(list_folder(root))
    try:
        yield list_folder(root)
    finally:
        _known.reset(token)


def list_folder(root: str) -> Listing:
    """List the files below a folder.

    Raises:
        DataError: a folder cannot be read.
    """
    known = _known.get()
    return known if known is not None and known.root == root else _walk(root)


def _walk(root: str) -> Listing:
    listing = Listing(root)
    ancestors = {_identity(os.stat(folder)) for folder in (root, *map(str, Path(os.path.realpath(root)).parents))}
    entered: set[tuple[int, int]] = set()
    folders = [""]
    while folders:
        folder = folders.pop()
        for entry in _scan(f"{root}/{folder}"):
            name = f"{folder}{entry.name}"
            if reason := system_file(entry.name, os.path.basename(f"{root}/{folder}".rstrip("/"))):
                listing.passed[reason] += 1
                continue
            try:
                facts = entry.stat()
            except OSError:
                listing.passed["broken link" if entry.is_symlink() else "unreadable file"] += 1
                continue
            if stat.S_ISDIR(facts.st_mode):
                if not entry.is_symlink():
                    folders.append(f"{name}/")
                elif _identity(facts) in ancestors | entered:
                    listing.passed["link to a folder that was entered before"] += 1
                else:
                    folders.append(f"{name}/")
                    entered.add(_identity(facts))
            elif not stat.S_ISREG(facts.st_mode):
                listing.passed["pipe, socket or device"] += 1
            elif kind := _other_kind(f"{root}/{name}"):
                listing.others[name] = kind
            else:
                listing.pictures.append((name, facts.st_size, facts.st_mtime_ns))
    return listing


def system_file(name: str, parent: str = "") -> str:
    """Why a file or folder is passed over by its name; empty if it is not.

    Args:
        name: its name.
        parent: the name of the folder that contains it.
    """
    lower = name.lower()
    for pattern, reason in SYSTEM.items():
        if lower == pattern or ("*" in pattern and fnmatch.fnmatchcase(lower, pattern)):
            return reason
    if lower.startswith("."):
        return "hidden"
    if lower in LIBRARY_FOLDERS and parent.lower().endswith(LIBRARIES):
        return "folder of thumbnails and data in an Apple photo library"
    return ""


def _scan(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"cannot read the folder {printable(folder)}: {error.strerror}") from error


def _identity(facts: os.stat_result) -> tuple[int, int]:
    return facts.st_dev, facts.st_ino


def _other_kind(path: str) -> str:
    """The kind of a file that is not a supported picture; empty for a picture."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix in images.SUFFIXES:
        return ""
    if suffix in RAW:
        return f"camera raw file ({suffix})"
    if suffix in TABLES:
        return f"table ({suffix})"
    if suffix in ARRAYS:
        return f"array file ({suffix})"
    found = ""
    try:
        with images.open_image_file(path) as file:
            found = images.detect_format(file.read(16))
    except images.UnreadableImage:
        pass
    if found:
        return "" if images.can_read(found) else {"HEIC": HEIC, "AVIF": AVIF}[found]
    if suffix in OTHER_PICTURES:
        return OTHER_PICTURES[suffix]
    if suffix in VIDEOS:
        return f"video ({suffix})"
    if suffix in ARCHIVES:
        return f"archive ({suffix})"
    return f"other file ({printable(suffix)})" if suffix else "other file (no ending)"
