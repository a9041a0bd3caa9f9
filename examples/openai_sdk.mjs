// OpenAI's own JavaScript package against Pippin: a thought and an answer, a tool, a response.
//
// npm install openai                                            # once
// make serve                                                    # in one terminal
// node examples/openai_sdk.mjs http://127.0.0.1:8080            # in another
import OpenAI from 'openai'

const client = new OpenAI({ baseURL: `${process.argv[2] ?? 'http://127.0.0.1:8080'}/v1`, apiKey: 'none' })
const { data } = await client.models.list()
const settings = { model: data[0].id, temperature: 0 }

const asked = (content) => [{ role: 'user', content }]
let thought = ''
let answer = ''
const question = "How many r's are in the word strawberry?"
for await (const chunk of await client.chat.completions.create({ ...settings, messages: asked(question), stream: true })) {
  thought += chunk.choices[0]?.delta.reasoning_content ?? ''
  answer += chunk.choices[0]?.delta.content ?? ''
}
console.log(`[${thought}]${answer}`)

const city = { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] }
const weather = { name: 'get_weather', description: 'Weather in a city', parameters: city }
const tools = [{ type: 'function', function: weather }]
const messages = asked('What is the weather in Paris?')
const { message } = (await client.chat.completions.create({ ...settings, messages, tools })).choices[0]
messages.push(message)
for (const call of message.tool_calls) {
  console.log(`calls ${call.function.name} with ${call.function.arguments}`)
  messages.push({ role: 'tool', tool_call_id: call.id, content: '{"sky": "sunny", "degrees": 21}' })
}
console.log((await client.chat.completions.create({ ...settings, messages, tools })).choices[0].message.content)

console.log((await client.responses.create({ ...settings, input: question })).output_text)
