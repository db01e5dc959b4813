"""Whether the Hugging Face hub can be reached: asked once, so that a name without a network fails at once."""

from typing import Any

TIMEOUTS: Any = (3.0, 10.0, 10.0, 10.0)  # seconds to connect, to read, to write, to wait for a connection
UNREACHABLE = ("ConnectError", "ConnectTimeout", "ConnectionError", "OfflineModeIsEnabled")


def unreachable(repo: str, file: str, kind: str = "model", token: Any = None) -> str | None:
    """Why the hub cannot be reached, by one request for a repository's file; None where it answers, be it a refusal.

    The hub's own client asks for each file six times over 25 s before it gives up. A network that is only slow counts
    as reached: what is asked next is asked as patiently as ever.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.constants import is_offline_mode

    if is_offline_mode():
        return "HF_HUB_OFFLINE is set"
    try:
        get_hf_file_metadata(hf_hub_url(repo, file, repo_type=kind), token=token, timeout=TIMEOUTS)
    except Exception as error:  # of a client whose classes differ from version to version
        return str(error) if type(error).__name__ in UNREACHABLE else None
    return None
