"""Download of checkpoints from the hub; the errors of its client become CheckpointError."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import errors as hub
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # httpx's own, or its successor's

from florence2.errors import CheckpointError
from florence2.model.storage.checkpoint_files import first_line


def download(name: str, revision: str | None, offline: bool, patterns: list[str]) -> Path:
    """Download the files of a hub repository that match the patterns, and return their folder."""
    with _hub_errors(name, revision):
        folder = snapshot_download(
            name, revision=revision, local_files_only=offline, allow_patterns=patterns, ignore_patterns=["*/*"]
        )
    return Path(folder)


@contextmanager
def _hub_errors(name: str, revision: str | None) -> Iterator[None]:
    """Convert the errors of the hub's client to CheckpointError, the narrow types before the wide ones."""
    try:
        yield
    except hub.GatedRepoError:
        raise CheckpointError(
            f"`{name}` is gated, and this account has no access", "request access on its page, then run `hf auth login`"
        ) from None
    except hub.RevisionNotFoundError:
        raise CheckpointError(
            f"`{name}` has no revision `{revision}`", "pass an existing branch, tag or commit"
        ) from None
    except hub.RepositoryNotFoundError:
        raise CheckpointError(
            f"there is no folder `{name}` and no model of that name on the hub",
            "check the spelling; for a private model run `hf auth login`",
        ) from None
    except hub.HFValidationError as error:
        raise CheckpointError(
            f"`{name}` is not a hub id: {first_line(error)}", "pass `owner/name` or a folder"
        ) from None
    except (hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled) as error:
        if isinstance(error.__cause__, hub.HfHubHTTPError):
            raise _refused_by_hub(name, error.__cause__) from None
        suffix = f" at revision `{revision}`" if revision else ""
        raise CheckpointError(
            f"there is no folder `{name}`, and the hub's cache has no complete copy of it{suffix}",
            "connect to the internet, unset `HF_HUB_OFFLINE` and `--offline`, or pass a local folder",
        ) from None
    except hub.HfHubHTTPError as error:
        raise _refused_by_hub(name, error) from None
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise CheckpointError(f"`{name}` cannot be downloaded: {first_line(error)}", "try again") from None
        raise CheckpointError(
            f"the disk is full: `{name}` cannot be stored", "free some space, or set `HF_HOME` to another disk"
        ) from None
    except HTTPError as error:
        raise CheckpointError(
            f"the connection to the hub broke during the download of `{name}`: {first_line(error)}", "try again"
        ) from None


def _refused_by_hub(name: str, error: hub.HfHubHTTPError) -> CheckpointError:
    status = error.response.status_code
    hint = "run `hf auth login`" if status in (401, 403) else "try again later, or pass a local folder"
    return CheckpointError(f"the hub refused `{name}` with status {status}", hint)
