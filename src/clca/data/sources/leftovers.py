"""What storage devices, systems, photo managers and cloud clients leave among photographs.

Thumbnails of a Synology NAS would become test images of the very leaves that a model is trained on, and a recycle bin a
class. This list is used for data sets and for `clca predict` alike; images that are left out because of it are counted.
"""

import re
from pathlib import Path

_FOLDERS = frozenset(
    name.strip().casefold()
    for line in """
        Synology: @eaDir, @tmp, @sharebin, @img_bkp_cache, @Search, @S2S, @SynoDrive, @SynologyDrive, @CloudStation
        Synology: @SynologyDriveShareSync, @SynologyCloudSync, .SynologyWorkingDirectory
        QNAP: .@__thumb, @__thumb, .@__qini, .@__desc, .@__comp, @Transcode, .@upload_cache, @Recently-Snapshot
        QNAP, Asustor: .streams, .@plugins, .@metadata
        Western Digital, D-Link: Nas_Prog, .wdmc, .wdphotos, .wdcache, .twonkymedia
        Netgear, Buffalo, LaCie: TheVolumeSettingsFolder, trashbox, .lacie
        TrueNAS, EMC, NetApp: .zfs, ix-applications, .ckpt, .snapdir
        Windows: $RECYCLE.BIN, RECYCLER, RecycleBin, System Volume Information, MSOCache, Config.Msi, WPSystem, $Extend
        Windows: $WinREAgent, $SysReset, $GetCurrent, $WINDOWS.~BT, $WINDOWS.~WS, $INPLACE.~TR
        macOS: .AppleDouble, .AppleDB, .AppleDesktop, .Spotlight-V100, .fseventsd, .Trash, .Trashes, .TemporaryItems
        macOS: Temporary Items, Network Trash Folder, .DocumentRevisions-V100, .vol, .MobileBackups, Backups.backupdb
        macOS: .PKInstallSandboxManager, .HFS+ Private Directory Data, Desktop DB, Desktop DF
        Linux, Android: lost+found, .thumbnails, .xvpics, LOST.DIR, .globalTrash
        iTunes, iPhoto: iPod Photo Cache, iPhoto Library
        digiKam, Picasa, ACDSee: .dtrash, .picasaoriginals, [Originals]
        Capture One, Nikon, Corel, Adobe: CaptureOne, NKSC_PARAM, Corel Auto-Preserve, Adobe Bridge Cache, .BridgeCache
        gThumb, RawTherapee: .comments, .pp3cache
        Dropbox, OneDrive: .dropbox.cache, .dropbox, OneDriveTemp
        Google Drive: .tmp.driveupload, .tmp.drivedownload, .shortcut-targets-by-id
        Syncthing, Resilio: .stfolder, .stversions, .sync, .SyncTrash, .SyncArchive
        MEGA, Seafile, Nextcloud: .debris, .seafile-data, files_trashbin, files_versions
    """.strip().splitlines()
    for name in line.partition(":")[2].split(",")
)
"""Names of folders, compared without regard to case, by who makes them."""

_FOLDER_PATTERN = re.compile(
    r"""
      [@#$.~](?:network[ ._-]?)?(?:recycle(?:r|d)?|recycle[ ._-]?bin|trash(?:es|ed|bin|box)?|snapshots?)(?:-\d+)?
    | (?:network[ ])?recycle[ ]bin(?:[ ]\d+|[ ]-[ ].+)?     # QNAP, Asustor, My Cloud: Recycle Bin - Volume_1
    | found\.\d{3}                                          # chkdsk
    | .+\.(?:lrdata|lrcat-data|lrlibrary)                   # Lightroom
    | .+\.(?:(?:migrated)?photos?library|photoboothlibrary) # Photos, iPhoto
    | .+\.(?:(?:migrated)?aplibrary|apvault|cocatalog)      # Aperture, Capture One
    | mipmaps-[0-9a-f]{8,}\.d                               # darktable
    | appdata_oc[0-9a-z]+                                   # Nextcloud, ownCloud
    """,
    re.VERBOSE,
)

_PLACEHOLDER = re.compile(r"\.(?P<icloud>.+)\.icloud|(?P<other>.+)\.(?:nextcloud|owncloud|opencloud)", re.IGNORECASE)

_CONFLICT = re.compile(
    r"""
      [ ]\([^()]*(?:conflicted|conflicting)[ ]copy[^()]*\)                        # Dropbox, Nextcloud, Box
    | [ ]\([^()]*(?:kopie|copie|copia|cópia)[^()]*\b[ck]onfli[ck]?t[^()]*\)        # Dropbox in other languages
    | [ ]\([^()]*\b[ck]onfli[ck]?t[^()]*(?:kopie|copie|copia|cópia)[^()]*\)
    | [ ]\((?:sfconflict|case[ ]conflict|unicode[ ]encoding[ ]conflict)[^()]*\)    # Seafile, Dropbox
    | \.sync-conflict-\d{8}-\d{6}(?:-[0-9a-z]+)?                                   # Syncthing
    | _conflict-\d{8}-\d{6}                                                        # ownCloud
    | _[^_]+_[a-z]{3}-\d{2}-\d{6}-\d{4}_conflict                                   # Synology Drive
    | [ ]?\[conflict(?:[ ]\d+)?\]                                                  # Google Drive
    | \.conflict\d*                                                                # Resilio
    """,
    re.VERBOSE | re.IGNORECASE,
)


def is_leftover(folder: Path) -> bool:
    """Whether a folder, by its name, was made by a system or program for files of its own.

    Args:
        folder: Its path. A folder `Originals` is one of Picasa's if there is a `.picasa.ini` beside it.
    """
    if folder.name.casefold() == "originals":
        return any((folder.parent / ini).is_file() for ini in (".picasa.ini", "Picasa.ini"))
    return is_leftover_name(folder.name)


def is_leftover_name(name: str) -> bool:
    """Whether a folder of this name is a leftover wherever it is; no file is looked at."""
    name = name.rstrip("\r").casefold()
    return name in _FOLDERS or _FOLDER_PATTERN.fullmatch(name) is not None


def leftover_above(path: Path, top: Path) -> Path | None:
    """The uppermost folder between `top` and a file in it that is a leftover, if any is."""
    folders = [folder for folder in path.parents if folder != top and folder.is_relative_to(top)]
    return next((folder for folder in reversed(folders) if is_leftover(folder)), None)


def placeholder_for(name: str) -> str | None:
    """The name of the file that is in the cloud only, if this is the name of the placeholder that a client leaves."""
    found = _PLACEHOLDER.fullmatch(name)
    return (found["icloud"] or found["other"]) if found else None


def is_conflict_copy(name: str) -> bool:
    """Whether a cloud client saved this file as a second version, since it was changed in two places at once."""
    stem = name.rpartition(".")[0] or name
    return any(found.end() == len(stem) for found in _CONFLICT.finditer(stem))
