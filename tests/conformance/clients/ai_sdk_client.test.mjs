// Vercel's AI SDK: chat completions by @ai-sdk/openai-compatible, responses by @ai-sdk/openai.
import assert from "node:assert/strict";
import test from "node:test";

import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, embedMany, generateText, Output, streamText, tool } from "ai";
import { z } from "zod";

const baseURL = `${process.env.LIVERY_URL}/v1`;
const base = process.env.LIVERY_BASE;
const models = [base, ...process.env.LIVERY_ADAPTERS.split(",")];
const chat = createOpenAICompatible({ name: "livery", baseURL, includeUsage: true, supportsStructuredOutputs: true });
const responses = createOpenAI({ baseURL, apiKey: "none" });
const ways = { chat: (name) => chat(name), responses: (name) => responses(name) };
const question = { prompt: "What is the capital of France?", temperature: 0, maxOutputTokens: 24, maxRetries: 0 };
const kept = { openai: { store: false } }; // or the second turn refers to items of the first, which nobody keeps
const size = z.object({ city: z.string().max(12), big: z.boolean() });
const weather = tool({ description: "The weather in a city", inputSchema: z.object({ city: z.string().max(12) }) });

for (const [way, model] of Object.entries(ways)) {
  for (const name of models) {
    test(`${way}: text of ${name}`, async () => {
      const answer = await generateText({ model: model(name), ...question });
      assert.ok(answer.text);
      assert.ok(answer.usage.outputTokens > 0);
    });
  }

  test(`${way}: a stream is the answer in pieces`, async () => {
    const whole = await generateText({ model: model(base), ...question });
    const stream = streamText({ model: model(base), ...question, onError: ({ error }) => assert.fail(error) });
    const pieces = [];
    for await (const piece of stream.textStream) pieces.push(piece);
    assert.ok(pieces.length > 1);
    assert.equal(pieces.join(""), whole.text);
    assert.equal(await stream.finishReason, whole.finishReason);
    assert.equal((await stream.usage).outputTokens, whole.usage.outputTokens);
  });

  test(`${way}: a shape is kept`, async () => {
    const output = Output.object({ schema: size });
    const answer = await generateText({ model: model(base), ...question, maxOutputTokens: 120, output });
    assert.equal(typeof answer.output.big, "boolean");
  });

  test(`${way}: a shape is kept in a stream`, async () => {
    const output = Output.object({ schema: size });
    const stream = streamText({ model: model(base), ...question, maxOutputTokens: 120, output });
    assert.equal(typeof (await stream.output).big, "boolean");
  });

  for (const toolChoice of ["required", { type: "tool", toolName: "weather" }]) {
    const asked = { ...question, maxOutputTokens: 80, tools: { weather }, toolChoice };
    const kind = toolChoice.type ?? toolChoice;
    test(`${way}: a tool is called (${kind})`, async () => {
      const { toolCalls } = await generateText({ model: model(base), ...asked });
      assert.equal(toolCalls[0].toolName, "weather");
      assert.equal(typeof toolCalls[0].input.city, "string");
    });

    test(`${way}: a tool is called in a stream (${kind})`, async () => {
      const toolCalls = await streamText({ model: model(base), ...asked }).toolCalls;
      assert.equal(toolCalls[0].toolName, "weather");
      assert.equal(typeof toolCalls[0].input.city, "string");
    });
  }

  test(`${way}: a tool is called, and what it gave is read in the next turn`, async () => {
    const asked = { ...question, maxOutputTokens: 80, tools: { weather }, providerOptions: kept };
    const first = await generateText({ model: model(base), ...asked, toolChoice: "required" });
    const { toolCallId, toolName } = first.toolCalls[0];
    const output = { type: "text", value: "Sunny, 20 C" };
    const result = { role: "tool", content: [{ type: "tool-result", toolCallId, toolName, output }] };
    const messages = [{ role: "user", content: question.prompt }, ...first.response.messages, result];
    const second = await generateText({ model: model(base), ...asked, prompt: undefined, messages, toolChoice: "none" });
    assert.ok(second.text);
    messages.push(...second.response.messages, { role: "user", content: "And tomorrow?" });
    const third = await generateText({ model: model(base), ...asked, prompt: undefined, messages, toolChoice: "none" });
    assert.ok(third.text);
  });

  test(`${way}: an unknown model`, async () => {
    const failed = generateText({ model: model("nobody"), ...question });
    await assert.rejects(failed, (error) => APICallError.isInstance(error) && error.statusCode === 404);
  });

  test(`${way}: a bad value`, async () => {
    const failed = generateText({ model: model(base), ...question, temperature: 3 });
    await assert.rejects(failed, (error) => error.statusCode === 400 && /temperature/.test(error.message));
  });
}

test("responses: a client that refers to what it takes for stored is told what to do", async () => {
  const first = await generateText({ model: responses(base), ...question });
  const messages = [{ role: "user", content: "Hi" }, ...first.response.messages, { role: "user", content: "And?" }];
  const failed = generateText({ model: responses(base), ...question, prompt: undefined, messages });
  await assert.rejects(failed, (error) => error.statusCode === 400 && /store: false/.test(error.message));
});

test("completions: a stream is the answer in pieces", async () => {
  const asked = { ...question, model: chat.completionModel(base), prompt: "The sky is" };
  const whole = await generateText(asked);
  assert.equal(await streamText(asked).text, whole.text);
});

test("embeddings", async () => {
  const { embeddings } = await embedMany({ model: chat.textEmbeddingModel(base), values: ["one", "two"] });
  assert.equal(embeddings.length, 2);
  assert.equal(embeddings[0].length, embeddings[1].length);
});
