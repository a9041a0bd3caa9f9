// Asks for the vectors of two texts through the official JavaScript clients: prints a line of JSON for each way.
//
// node embeddings.mjs URL
import { createOpenAI } from '@ai-sdk/openai'
import { createOpenAICompatible } from '@ai-sdk/openai-compatible'
import { embedMany } from 'ai'
import { Ollama } from 'ollama'
import OpenAI from 'openai'

const url = process.argv[2]
const texts = ['One text.', 'Another one.']
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: 'none' })
const model = (await client.models.list()).data[0].id
const ollama = new Ollama({ host: url })
const compatible = createOpenAICompatible({ name: 'pippin', baseURL: `${url}/v1` })
const official = createOpenAI({ baseURL: `${url}/v1`, apiKey: 'none' })

const vectors = async (asked) => (await client.embeddings.create({ model, input: texts, ...asked })).data.map((each) => each.embedding)
const of = async (embedding) => (await embedMany({ model: embedding, values: texts, maxRetries: 0 })).embeddings
const ways = {
  'openai': await vectors({}), // as base64, which the package reads
  'openai float': await vectors({ encoding_format: 'float' }),
  'ollama embed': (await ollama.embed({ model, input: texts })).embeddings,
  'ollama embeddings': await Promise.all(texts.map(async (prompt) => (await ollama.embeddings({ model, prompt })).embedding)),
  '@ai-sdk/openai-compatible': await of(compatible.textEmbeddingModel(model)),
  '@ai-sdk/openai': await of(official.textEmbeddingModel(model)),
}
for (const [way, found] of Object.entries(ways)) console.log(JSON.stringify({ way, vectors: found }))
