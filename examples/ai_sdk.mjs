// Vercel's AI SDK against Pippin, by @ai-sdk/openai-compatible and by @ai-sdk/openai: a thought and an answer, a tool.
//
// npm install ai @ai-sdk/openai-compatible @ai-sdk/openai zod   # once
// make serve                                                    # in one terminal
// node examples/ai_sdk.mjs http://127.0.0.1:8080                # in another
import { createOpenAI } from '@ai-sdk/openai'
import { createOpenAICompatible } from '@ai-sdk/openai-compatible'
import { generateText, jsonSchema, stepCountIs, streamText, tool } from 'ai'

const baseURL = `${process.argv[2] ?? 'http://127.0.0.1:8080'}/v1`
const { data } = await (await fetch(`${baseURL}/models`)).json()
const chat = createOpenAICompatible({ name: 'pippin', baseURL })(data[0].id)
const responses = createOpenAI({ baseURL, apiKey: 'none' }).responses(data[0].id)

let thought = ''
let answer = ''
const question = { prompt: "How many r's are in the word strawberry?", temperature: 0 }
for await (const part of streamText({ model: chat, ...question }).fullStream) {
  if (part.type === 'reasoning-delta') thought += part.text
  if (part.type === 'text-delta') answer += part.text
}
console.log(`[${thought}]${answer}`)

const city = jsonSchema({ type: 'object', properties: { city: { type: 'string' } }, required: ['city'] })
const weather = tool({
  description: 'Weather in a city',
  inputSchema: city,
  execute: (input) => {
    console.log(`calls get_weather with ${JSON.stringify(input)}`)
    return '{"sky": "sunny", "degrees": 21}'
  },
})
const told = { prompt: 'What is the weather in Paris?', temperature: 0, tools: { get_weather: weather } }
for (const model of [chat, responses]) {
  console.log((await generateText({ model, ...told, stopWhen: stepCountIs(3) })).text)
}
