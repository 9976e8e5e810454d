"""A live server with the tiny bundle, and no network for the tools."""

from __future__ import annotations

import os

from tests.api.conftest import reference, server

os.environ["HF_HUB_OFFLINE"] = "1"  # read when the tools are imported
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["HF_UPDATE_DOWNLOAD_COUNTS"] = "0"

__all__ = ["reference", "server"]
