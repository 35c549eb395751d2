"""Files that file systems and photo programs put next to photos: no photos, or copies of them.

They are skipped and counted by kind, not refused as damaged photos. Thumbnails and previews are
copies of photos in other bytes, so they could get into train while their photo is in val.

In folders and tars the name alone decides, so a listing opens no file and never changes. It is only
looked at below a source: whoever names a file or such a folder as a source gets its photos.
"""

from __future__ import annotations

import re
from fnmatch import translate

_FILES = (
    # RFC 1740, appendix B: what macOS writes to file systems without resource forks, and into tars.
    ("._*", "._* (AppleDouble)"),
    # https://en.wikipedia.org/wiki/.DS_Store
    (".DS_Store", ".DS_Store (macOS)"),
    # https://en.wikipedia.org/wiki/Windows_thumbnail_cache; ehthumbs: Windows Media Center
    ("Thumbs.db", "Thumbs.db (Windows)"),
    ("ehthumbs*.db", "ehthumbs.db (Windows)"),
    # https://learn.microsoft.com/windows/win32/shell/how-to-customize-folders-with-desktop-ini
    ("desktop.ini", "desktop.ini (Windows)"),
    # Thumbnails of Synology's Photo Station and Drive, copied out of their @eaDir folders.
    ("SYNOPHOTO_THUMB_*", "SYNOPHOTO_THUMB_* (thumbnails)"),
    ("SYNOFILE_THUMB_*", "SYNOFILE_THUMB_* (thumbnails)"),
)
_FOLDERS = (
    # macOS's Archive Utility: the AppleDouble files of a zip, in a tree like that of the photos.
    ("__MACOSX", "__MACOSX/ (AppleDouble)"),
    # Netatalk before version 3: AppleDouble files under their photos' own names.
    (".AppleDouble", ".AppleDouble/ (AppleDouble)"),
    # https://github.com/mbrrg/synology-thumbgen: thumbnails of a Synology NAS, a folder per photo.
    ("@eaDir", "@eaDir/ (thumbnails)"),
    # Thumbnails of a QNAP NAS, under their photos' own names.
    (".@__thumb", ".@__thumb/ (thumbnails)"),
    # https://specifications.freedesktop.org/thumbnail-spec: its own folder, that of before 2012,
    # and the one shared by the users of a medium. Android keeps DCIM/.thumbnails, others .thumbs.
    (".cache/thumbnails", ".cache/thumbnails/ (thumbnails)"),
    (".thumb*", ".thumb*/ (thumbnails)"),
    (".sh_thumbnails", ".sh_thumbnails/ (thumbnails)"),
    # XV and GIMP 1: thumbnails under their photos' own names.
    (".xvpics", ".xvpics/ (thumbnails)"),
    # Lightroom Classic's previews and smart previews next to a catalog.
    ("*.lrdata", "*.lrdata/ (Lightroom previews)"),
    # darktable's cache of thumbnails (~/.cache/darktable): JPEGs, one folder per size.
    ("mipmaps-*.d", "mipmaps-*.d/ (darktable thumbnails)"),
    # Nextcloud's data folder: previews of all users' photos.
    ("appdata_*/preview", "appdata_*/preview/ (Nextcloud thumbnails)"),
    # The libraries of Apple's Photos, iPhoto and Aperture keep originals in originals/ or Masters/.
    # https://github.com/muxcmux/apple-photos-forensics: resources/ holds resized and edited copies.
    *(
        (f"*.{library}/{folder}", f"{folder}/ of Apple photo libraries (thumbnails, edits)")
        for library in ("photoslibrary", "photolibrary", "migratedphotolibrary", "aplibrary")
        for folder in ("resources", "Thumbnails", "Previews", "Modified", "Data", "Data.noindex")
    ),
    # Picasa and ACDSee move the original here when an edited photo is saved in its place. Both
    # would be two versions of one photo; the edited one is what its owner sees as the photo.
    (".picasaoriginals", ".picasaoriginals/ (photos before an edit)"),
    ("[[]Originals]", "[Originals]/ (photos before an edit)"),
    # Deleted photos: Windows, https://specifications.freedesktop.org/trash-spec and macOS,
    # Synology, QNAP and digiKam.
    ("$RECYCLE.BIN", "$RECYCLE.BIN/ (deleted files)"),
    (".Trash", ".Trash/ (deleted files)"),
    (".Trash-*", ".Trash-*/ (deleted files)"),
    (".Trashes", ".Trashes/ (deleted files)"),
    (".local/share/Trash", ".local/share/Trash/ (deleted files)"),
    ("#recycle", "#recycle/ (deleted files)"),
    ("@Recycle", "@Recycle/ (deleted files)"),
    (".dtrash", ".dtrash/ (deleted files)"),
)

APPLE_DOUBLE = "._* (AppleDouble)"
_APPLE_MAGIC = (b"\x00\x05\x16\x07", b"\x00\x05\x16\x00")
"""RFC 1740: the magic numbers of AppleDouble and AppleSingle files; no photo begins like this."""


def _any_of(kinds: tuple[tuple[str, str], ...]) -> re.Pattern[str]:
    # One expression for all kinds, because it is matched against every name of a source.
    expressions = (translate(glob.lower()).replace(".*", "[^/]*") for glob, _ in kinds)
    return re.compile("|".join(f"({expression})" for expression in expressions))


_ANY_FILE, _ANY_FOLDER = _any_of(_FILES), _any_of(_FOLDERS)


def litter_file(path: str) -> str | None:
    """The kind of litter that a file is by its name, or None."""
    match = _ANY_FILE.match(path.rpartition("/")[2].lower())
    return None if match is None else _FILES[(match.lastindex or 1) - 1][1]


def litter_folder(path: str) -> str | None:
    """The kind of litter that a folder holds by its own name (and its parents'), or None."""
    parts = path.lower().split("/")
    for depth in (1, 2, 3):
        match = _ANY_FOLDER.match("/".join(parts[-depth:])) if depth <= len(parts) else None
        if match is not None:
            return _FOLDERS[(match.lastindex or 1) - 1][1]
    return None


def litter_in(path: str) -> str | None:
    """The kind of litter that a path of folders and a file is, or None."""
    parts = path.split("/")
    for end in range(1, len(parts)):
        if kind := litter_folder("/".join(parts[:end])):
            return kind
    return litter_file(path)


def is_apple_double(content: object) -> bool:
    """Whether a file's content is AppleDouble, whatever its name; what is not bytes is not."""
    return isinstance(content, bytes) and content.startswith(_APPLE_MAGIC)
