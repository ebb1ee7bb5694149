"""Uploads an exported model to the Hugging Face Hub."""

from collections.abc import Sequence
from pathlib import Path
import re
from types import ModuleType

from clip_jax.cli.optional import optional
from clip_jax.errors import UserError


def check_push(name: str) -> ModuleType:
  """Checks that a push can work, before anything expensive starts; returns huggingface_hub.

  Raises:
    UserError: the name is not ORG/NAME, huggingface_hub is not installed, or nobody is logged in.
  """
  if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
    raise UserError(f"--push={name} is not ORG/NAME, for example --push=my-name/my-clip.")
  hub = optional("huggingface_hub", "hub")
  try:
    hub.HfApi().whoami()
  except Exception as error:  # Several libraries raise their own errors here.
    raise UserError(
      f"--push={name}: the Hugging Face Hub does not accept this login: {error} Log in with "
      "hf auth login, or set HF_TOKEN, and check the network. To only export, leave out --push."
    ) from error
  return hub


def push(folder: Path, files: Sequence[str], name: str, *, public: bool = False) -> str:
  """Uploads files of a folder to a repository, which is created if there is none.

  Args:
    folder: the folder.
    files: the files to upload, relative to it; nothing else of the folder is.
    name: ORG/NAME.
    public: whether a new repository can be read by everybody.

  Returns:
    The address of the repository.

  Raises:
    UserError: as for `check_push`, or the upload failed.
  """
  api = check_push(name).HfApi()
  try:
    made = api.create_repo(name, private=not public, exist_ok=True)
    api.upload_folder(
      repo_id=name,
      folder_path=str(folder),
      allow_patterns=list(files),
      commit_message="Upload a model exported by clip_jax",
    )
  except Exception as error:
    raise UserError(
      f"The model is exported to {folder}, but uploading it to {name} failed: {error} Rerun the "
      "command to try again."
    ) from error
  return str(made)
