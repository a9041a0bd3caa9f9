// Reads golden answers through the official JavaScript clients. Of each it prints a line of JSON: what it has made of it.
//
// node golden.mjs URL, where URL/kinds lists [way, kind, streamed] and URL/WAY/KIND stands for a server.
import Anthropic from '@anthropic-ai/sdk'
import { createOpenAI } from '@ai-sdk/openai'
import { createOpenAICompatible } from '@ai-sdk/openai-compatible'
import { generateText, jsonSchema, streamText, tool } from 'ai'
import { Ollama } from 'ollama'
import OpenAI from 'openai'

globalThis.AI_SDK_LOG_WARNINGS = false
const url = process.argv[2]
const messages = [{ role: 'user', content: 'hi' }]
const weather = tool({ inputSchema: jsonSchema({ type: 'object', properties: { city: { type: 'string' } } }) })
const tools = { get_weather: weather }

const openai = (base) => new OpenAI({ baseURL: `${base}/v1`, apiKey: 'none', maxRetries: 0 })
const joined = (parts, name = 'text') => parts.map((part) => part[name] ?? '').join('')
const made = (text = '', thinking = '', calls = []) => ({ text, thinking, calls })

// --- openai

async function chat(base, stream) {
  const answer = await openai(base).chat.completions.create({ model: 'mock', messages, stream })
  if (!stream) {
    const { content, reasoning_content: thinking, tool_calls: calls } = answer.choices[0].message
    return made(content ?? '', thinking, (calls ?? []).map((call) => [call.function.name, call.function.arguments]))
  }
  const found = made()
  for await (const chunk of answer) {
    const delta = chunk.choices.find((choice) => choice.index === 0)?.delta ?? {}
    found.text += delta.content ?? ''
    found.thinking += delta.reasoning_content ?? ''
    for (const call of delta.tool_calls ?? []) {
      found.calls[call.index] ??= ['', '']
      found.calls[call.index][0] += call.function.name ?? ''
      found.calls[call.index][1] += call.function.arguments ?? ''
    }
  }
  return found
}

async function completion(base, stream) {
  const answer = await openai(base).completions.create({ model: 'mock', prompt: 'ab', stream })
  if (!stream) return made(answer.choices[0].text)
  let text = ''
  for await (const chunk of answer) text += joined(chunk.choices.filter((choice) => choice.index === 0))
  return made(text)
}

async function responses(base, stream) {
  const asked = { model: 'mock', input: 'hi' }
  const api = openai(base).responses
  const answer = stream ? await api.stream(asked).finalResponse() : await api.create(asked)
  if (answer.error) throw new Error(answer.error.message)
  const found = made(answer.output_text ?? joined(answer.output.flatMap((item) => item.content ?? [])))
  for (const item of answer.output) {
    if (item.type === 'reasoning') found.thinking += joined(item.content?.length ? item.content : item.summary)
    if (item.type.endsWith('_call')) found.calls.push([item.name, item.arguments ?? item.input])
  }
  return found
}

// --- @anthropic-ai/sdk

async function claude(base, stream) {
  const { messages: api } = new Anthropic({ baseURL: base, apiKey: 'none', maxRetries: 0 })
  const asked = { model: 'mock', max_tokens: 9, messages }
  const { content } = stream ? await api.stream(asked).finalMessage() : await api.create(asked)
  const of = (type) => content.filter((block) => block.type === type)
  const calls = of('tool_use').map((call) => [call.name, JSON.stringify(call.input)])
  return made(joined(of('text')), joined(of('thinking'), 'thinking'), calls)
}

// --- ollama

const calledByOllama = (call) => [call.function.name, JSON.stringify(call.function.arguments)]

async function ollamaChat(base, stream) {
  const answer = await new Ollama({ host: base }).chat({ model: 'mock', messages, stream })
  const found = made()
  for await (const { message } of stream ? answer : [answer]) {
    found.text += message.content
    found.thinking += message.thinking ?? ''
    found.calls.push(...(message.tool_calls ?? []).map(calledByOllama))
  }
  return found
}

async function ollamaGenerate(base, stream) {
  const answer = await new Ollama({ host: base }).generate({ model: 'mock', prompt: 'hi', stream })
  const found = made()
  for await (const part of stream ? answer : [answer]) {
    found.text += part.response
    found.thinking += part.thinking ?? ''
  }
  return found
}

// --- ai, with @ai-sdk/openai-compatible and @ai-sdk/openai

async function ai(model, stream) {
  const asked = { model, messages, tools, maxRetries: 0 }
  if (!stream) {
    const { text, reasoningText, toolCalls } = await generateText(asked)
    return made(text, reasoningText, toolCalls.map((call) => [call.toolName, JSON.stringify(call.input)]))
  }
  const found = made()
  for await (const part of streamText({ ...asked, onError: () => {} }).fullStream) {
    if (part.type === 'error') throw part.error
    if (part.type === 'text-delta') found.text += part.text
    if (part.type === 'reasoning-delta') found.thinking += part.text
    if (part.type === 'tool-call') found.calls.push([part.toolName, JSON.stringify(part.input)])
  }
  return found
}

const compatible = (base) => createOpenAICompatible({ name: 'pippin', baseURL: `${base}/v1` })
const official = (base) => createOpenAI({ baseURL: `${base}/v1`, apiKey: 'none' })

const ways = {
  'openai chat': chat,
  'openai completions': completion,
  'openai responses': responses,
  '@anthropic-ai/sdk messages': claude,
  'ollama chat': ollamaChat,
  'ollama generate': ollamaGenerate,
  '@ai-sdk/openai-compatible chat': (base, stream) => ai(compatible(base).chatModel('mock'), stream),
  '@ai-sdk/openai-compatible completions': (base, stream) => ai(compatible(base).completionModel('mock'), stream),
  '@ai-sdk/openai chat': (base, stream) => ai(official(base).chat('mock'), stream),
  '@ai-sdk/openai responses': (base, stream) => ai(official(base).responses('mock'), stream),
}

for (const [way, kind, stream] of await (await fetch(`${url}/kinds`)).json()) {
  let found
  try {
    found = await ways[way](`${url}/${encodeURIComponent(way)}/${kind}`, stream)
  } catch (error) {
    found = { failed: String(error.message ?? error) }
  }
  console.log(JSON.stringify({ way, kind, stream, ...found }))
}
