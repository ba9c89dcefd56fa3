// The AI SDK, at its defaults: node say_ai_sdk.mjs ADDRESS > sound
import { createOpenAI } from "@ai-sdk/openai";
import { experimental_generateSpeech as generateSpeech } from "ai";

const openai = createOpenAI({ baseURL: `${process.argv[2]}/v1`, apiKey: "unused" });
const { audio } = await generateSpeech({ model: openai.speech("gpt-4o-mini-tts"), text: "one two" });
process.stdout.write(Buffer.from(audio.uint8Array));
