"""Deleting uploads that are old, while the page runs."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from clca.app.upload_folder import UploadFolder


@asynccontextmanager
async def delete_old_uploads(folder: UploadFolder, seconds: float) -> AsyncIterator[None]:
    """Delete what in `folder` is older than `seconds`, again and again, until the block ends."""

    async def repeat() -> None:
        while True:
            await asyncio.to_thread(folder.delete_older, seconds)
            await asyncio.sleep(min(60.0, seconds))

    task = asyncio.create_task(repeat())
    try:
        yield
    finally:
        task.cancel()
