"""Download a model from the Hugging Face Hub, or say clearly why not."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from swinv2_deploy.errors import ArtifactError

PATTERNS = ["config.json", "preprocessor_config.json", "*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin*"]
TIMEOUT_S = 5.0


class HubUnreachable(Exception):
    """The hub did not answer and the model is not in the local cache."""


def download(hub_id: str) -> Path:
    """Folder with the model's config and weights, from the local cache where it is complete.

    Raises:
        HubUnreachable: Without a network, unless the model was downloaded before.
        ArtifactError: When the hub answers that there is no such model, or that it may not be read.
    """
    try:
        return Path(snapshot_download(hub_id, allow_patterns=PATTERNS, etag_timeout=TIMEOUT_S))
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise HubUnreachable("no network, and it was not downloaded before") from error
    except GatedRepoError as error:
        raise ArtifactError(f"{hub_id} is gated on the hub; accept its terms there and log in with 'hf auth login'.") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ArtifactError(f"The hub has no model {hub_id!r}; check the name, or give a folder.") from error
    except HfHubHTTPError as error:
        raise HubUnreachable(str(error).splitlines()[0]) from error
    except OSError as error:
        raise HubUnreachable(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no answer'}") from error
