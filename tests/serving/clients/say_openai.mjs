// The OpenAI client for JavaScript, with what its guide sends: node say_openai.mjs ADDRESS > sound
import OpenAI from "openai";

const client = new OpenAI({ baseURL: `${process.argv[2]}/v1`, apiKey: "unused" });
const answer = await client.audio.speech.create({
  model: "gpt-4o-mini-tts", voice: "coral", input: "one two", instructions: "Speak in a cheerful tone.",
});
process.stdout.write(Buffer.from(await answer.arrayBuffer()));
