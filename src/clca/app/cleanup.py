"""Deleting uploads that are old, while the page runs."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from clca.app.upload_folder import UploadFolder


@asynccontextmanager
async def sweeping(folder: UploadFolder, seconds: float) -> AsyncIterator[None]:
    """Delete what in `folder` is older than `seconds`, again and again, until the block ends."""

    async def sweep() -> None:
        while True:
            await asyncio.to_thread(folder.sweep, seconds)
            await asyncio.sleep(min(60.0, seconds))

    task = asyncio.create_task(sweep())
    try:
        yield
    finally:
        task.cancel()
