// Anthropic's own JavaScript package against Pippin: a thought and an answer, a tool.
//
// npm install @anthropic-ai/sdk                                 # once
// make serve                                                    # in one terminal
// node examples/anthropic_sdk.mjs http://127.0.0.1:8080         # in another
import Anthropic from '@anthropic-ai/sdk'

const client = new Anthropic({ baseURL: process.argv[2] ?? 'http://127.0.0.1:8080', apiKey: 'none' })
const { data } = await client.models.list()
const settings = { model: data[0].id, max_tokens: 500, temperature: 0 }

const asked = (content) => [{ role: 'user', content }]
let thought = ''
let answer = ''
const stream = client.messages.stream({ ...settings, messages: asked("How many r's are in the word strawberry?") })
stream.on('thinking', (text) => (thought += text)).on('text', (text) => (answer += text))
await stream.done()
console.log(`[${thought}]${answer}`)

const city = { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] }
const tools = [{ name: 'get_weather', description: 'Weather in a city', input_schema: city }]
const messages = asked('What is the weather in Paris?')
const { content } = await client.messages.create({ ...settings, messages, tools })
const results = []
for (const call of content.filter((block) => block.type === 'tool_use')) {
  console.log(`calls ${call.name} with ${JSON.stringify(call.input)}`)
  results.push({ type: 'tool_result', tool_use_id: call.id, content: '{"sky": "sunny", "degrees": 21}' })
}
messages.push({ role: 'assistant', content }, { role: 'user', content: results })
const last = await client.messages.create({ ...settings, messages, tools })
console.log(last.content.find((block) => block.type === 'text').text)
