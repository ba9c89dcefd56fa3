"""litellm, as its guide calls it for a server of OpenAI's kind: say_litellm.py ADDRESS > sound."""

import sys

import litellm

answer = litellm.speech(
    model="openai/tts-1", voice="alloy", input="one two", api_base=f"{sys.argv[1]}/v1", api_key="unused"
)
sys.stdout.buffer.write(answer.content)
