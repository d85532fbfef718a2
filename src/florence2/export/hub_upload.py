"""Upload of a finished export by the hub's own client."""

from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub import errors as hub

from florence2.errors import OptionError, UserError


def check_login(repo: str, *, offline: bool) -> None:
    """Raise OptionError for an upload that cannot begin, before the work is done."""
    if offline:
        raise OptionError("`--push_to_hub` and `--offline` exclude each other", "remove one of them")
    if not get_token():
        raise OptionError(f"`--push_to_hub {repo}` needs a login", "run `hf auth login`, or set `HF_TOKEN`")


def upload(folder: Path, repo: str) -> str:
    """Create the repository where it is missing, upload all files in one commit, and return its address."""
    client = HfApi()
    try:
        created = client.create_repo(repo, exist_ok=True)
        client.upload_folder(repo_id=created.repo_id, folder_path=folder, commit_message="Upload the export")
    except (hub.HfHubHTTPError, hub.HFValidationError, hub.HTTPError) as error:  # type: ignore[attr-defined]
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
        what = f"the export is in `{folder}`, but the upload to `{repo}` failed: {reason}"
        raise UserError(what, f"run `hf upload {repo} {folder}`") from error
    return str(created)
