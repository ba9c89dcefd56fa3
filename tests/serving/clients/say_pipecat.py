"""Pipecat's service for OpenAI's speech in a pipeline, at its defaults: say_pipecat.py ADDRESS > sound."""

import asyncio
import sys

from pipecat.frames.frames import EndFrame, Frame, TTSAudioRawFrame, TTSSpeakFrame
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.runner import PipelineRunner
from pipecat.pipeline.task import PipelineParams, PipelineTask
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.services.openai.tts import OpenAITTSService


class Listener(FrameProcessor):
    sound = b""

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if isinstance(frame, TTSAudioRawFrame):
            self.sound += frame.audio
        await self.push_frame(frame, direction)


async def say(address: str) -> bytes:
    listener = Listener()
    service = OpenAITTSService(base_url=f"{address}/v1", api_key="unused")
    task = PipelineTask(Pipeline([service, listener]), params=PipelineParams(audio_out_sample_rate=24_000))
    await task.queue_frames([TTSSpeakFrame("one two"), EndFrame()])
    await PipelineRunner(handle_sigint=False).run(task)
    return listener.sound


sys.stdout.buffer.write(asyncio.run(say(sys.argv[1])))
