// Ollama's own JavaScript package against Pippin: a thought and an answer, a tool, a structured answer.
//
// npm install ollama                                            # once
// make serve                                                    # in one terminal
// node examples/ollama_client.mjs http://127.0.0.1:8080         # in another
import { Ollama } from 'ollama'

const client = new Ollama({ host: process.argv[2] ?? 'http://127.0.0.1:8080' })
const { models } = await client.list()
const model = models[0].name
const options = { temperature: 0 }

const asked = (content) => [{ role: 'user', content }]
let thought = ''
let answer = ''
const question = asked("How many r's are in the word strawberry?")
for await (const part of await client.chat({ model, messages: question, stream: true, options })) {
  thought += part.message.thinking ?? ''
  answer += part.message.content
}
console.log(`[${thought}]${answer}`)

const city = { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] }
const weather = { name: 'get_weather', description: 'Weather in a city', parameters: city }
const tools = [{ type: 'function', function: weather }]
const messages = asked('What is the weather in Paris?')
const { message } = await client.chat({ model, messages, tools, options })
for (const call of message.tool_calls) {
  console.log(`calls ${call.function.name} with ${JSON.stringify(call.function.arguments)}`)
  messages.push(message, { role: 'tool', tool_name: call.function.name, content: '{"sky": "sunny", "degrees": 21}' })
}
console.log((await client.chat({ model, messages, tools, options })).message.content)

const person = { name: { type: 'string' }, age: { type: 'integer' } }
const format = { type: 'object', properties: person, required: ['name', 'age'], additionalProperties: false }
const anna = await client.chat({ model, messages: asked('Anna is 31 years old.'), format, options })
console.log(JSON.stringify(JSON.parse(anna.message.content)))
