// Use the official OpenAI client for Node against a running appliance: argv[2] is the base URL.
// Every check is an assertion.
import assert from "node:assert/strict";
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.argv[2], apiKey: "x", maxRetries: 0 });
const messages = [{ role: "user", content: "Hello!" }];
const options = { model: "demo", messages, temperature: 0, max_completion_tokens: 24 };

const whole = await client.chat.completions.create(options);
assert.equal(whole.choices[0].message.role, "assistant");
assert.ok(whole.choices[0].message.content);
assert.equal(whole.choices[0].logprobs, null);

const stream = await client.chat.completions.create({
  ...options,
  stream: true,
  stream_options: { include_usage: true },
});
const chunks = [];
for await (const chunk of stream) chunks.push(chunk);
assert.equal(chunks[0].choices[0].delta.role, "assistant");
const text = chunks.map((chunk) => chunk.choices[0]?.delta.content ?? "").join("");
assert.equal(text, whole.choices[0].message.content);
assert.deepEqual(chunks.at(-1).choices, []);
assert.deepEqual(chunks.at(-1).usage, whole.usage);

const collected = await client.chat.completions.stream(options).finalChatCompletion();
assert.equal(collected.choices[0].message.content, text);

const tools = [
  {
    type: "function",
    function: {
      name: "get_weather",
      parameters: {
        type: "object",
        properties: { city: { type: "string", maxLength: 9 } },
        required: ["city"],
        additionalProperties: false,
      },
    },
  },
];
const called = await client.chat.completions.create({
  ...options,
  max_completion_tokens: 120,
  tools,
  tool_choice: { type: "function", function: { name: "get_weather" } },
});
assert.equal(called.choices[0].finish_reason, "tool_calls");
const call = called.choices[0].message.tool_calls[0];
assert.deepEqual(Object.keys(JSON.parse(call.function.arguments)), ["city"]);

const completion = await client.completions.create({
  model: "demo",
  prompt: "One two",
  max_tokens: 4,
  logprobs: 1,
  temperature: 0,
});
assert.equal(completion.choices[0].logprobs.tokens.length, completion.usage.completion_tokens);

const ids = [];
for await (const model of client.models.list()) ids.push(model.id);
assert.deepEqual(ids, ["demo"]);

await assert.rejects(
  client.chat.completions.create({ ...options, model: "nobody" }),
  (error) => error instanceof OpenAI.NotFoundError && error.code === "model_not_found",
);
await assert.rejects(
  client.chat.completions.create({ ...options, temperature: -1 }),
  (error) => error instanceof OpenAI.BadRequestError && error.param === "temperature",
);

const left = await client.chat.completions.create({ ...options, stream: true });
for await (const _ of left) break;
console.log("openai for node: ok");
