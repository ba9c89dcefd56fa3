"""A program that "speaks": 0.3 s of a tone a word, read from standard input. What it reads may ask it to misbehave."""

import argparse
import sys
import time
import wave
from pathlib import Path

import numpy as np

RATE = 16_000


def tone(text: str, voice: str) -> np.ndarray:
    """Samples in -1..1."""
    words = text.split()
    t = np.arange(int(0.3 * RATE * max(1, len(words)))) / RATE
    loudness = 0.0005 if "whisper" in words else 1.2 if "shout" in words else 0.2
    return np.clip(loudness * np.sin(2 * np.pi * (150 if voice == "low" else 300) * t), -1, 1)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", type=Path)
    parser.add_argument("--voice", default="low")
    parser.add_argument("--text")
    given = parser.parse_args()
    text = sys.stdin.read() if given.text is None else given.text
    if "fail" in text:
        sys.exit("no such voice")
    if "sleep" in text:
        time.sleep(3600)
    if "garbage" in text:
        sys.stdout.buffer.write(b"not sound")
        return
    samples = (tone(text, given.voice) * 32767).astype("<i2")
    with wave.open(str(given.output) if given.output else sys.stdout.buffer, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(RATE)
        writer.writeframes(samples.tobytes())


if __name__ == "__main__":
    main()
