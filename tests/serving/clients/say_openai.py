"""The OpenAI client for Python, with what its guide sends: say_openai.py ADDRESS > sound."""

import sys

from openai import OpenAI

client = OpenAI(base_url=f"{sys.argv[1]}/v1", api_key="unused")
with client.audio.speech.with_streaming_response.create(
    model="gpt-4o-mini-tts", voice="coral", input="one two", instructions="Speak in a cheerful tone."
) as answer:
    for part in answer.iter_bytes():
        sys.stdout.buffer.write(part)
