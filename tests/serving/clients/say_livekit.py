"""The OpenAI plug-in of LiveKit's agents, at its defaults: say_livekit.py ADDRESS > sound."""

import asyncio
import sys

import aiohttp
from livekit.plugins import openai


async def say(address: str) -> bytes:
    speaker = openai.TTS(base_url=f"{address}/v1", api_key="unused")
    async with aiohttp.ClientSession():
        frames = [audio.frame async for audio in speaker.synthesize("one two")]
    await speaker.aclose()
    return b"".join(bytes(frame.data) for frame in frames)


sys.stdout.buffer.write(asyncio.run(say(sys.argv[1])))
