// Runs in node with @huggingface/hub: reads what the dialect says, prints it as one JSON line.
import { createHash } from "node:crypto";
import { createRequire } from "node:module";
import { readFile } from "node:fs/promises";
import { pathToFileURL } from "node:url";

const order = JSON.parse(process.argv[2]);
const hub = await import(pathToFileURL(createRequire(process.cwd() + "/").resolve("@huggingface/hub")));
const common = { hubUrl: process.env.HF_ENDPOINT, accessToken: `hf_${process.env.HF_TOKEN}` }; // it takes none that begins otherwise
const repo = { type: "model", name: order.name };
const sum = (data) => createHash("sha256").update(Buffer.from(data)).digest("hex");
const all = async (items) => { const found = []; for await (const item of items) found.push(item); return found; };
const said = async (call) => { try { return ["", String(await call())]; } catch (e) { return [String(e.statusCode ?? e.name), String(e.message)]; } };

const fetched = async (path, revision) => sum(await (await hub.downloadFile({ repo, path, revision, ...common })).arrayBuffer());
const slice = await (await hub.downloadFile({ repo, path: order.weights, revision: "canary", ...common })).slice(8, 24).arrayBuffer();
const cached = await hub.downloadFileToCacheDir({ repo, path: order.weights, revision: "canary", cacheDir: "cache", ...common });
const names = async (asked) => (await all(hub.listModels({ ...asked, ...common }))).map((model) => model.name);
const found = {
  weights: await fetched(order.weights, "canary"),
  "weights at main": await fetched(order.weights, "main"),
  nested: await fetched(order.nested, order.commit),
  slice: Buffer.from(slice).toString("hex"),
  cached: [sum(await readFile(cached)), cached.split("/").slice(-2)[0]],
  about: await hub.fileDownloadInfo({ repo, path: order.weights, revision: "v1", ...common }),
  files: (await all(hub.listFiles({ repo, revision: "refs/heads/canary", recursive: true, ...common }))).map((f) => [f.path, f.type, f.size, f.oid, f.lfs?.oid ?? ""]),
  below: (await all(hub.listFiles({ repo, path: "part/one", revision: "v1", ...common }))).map((f) => f.path),
  paths: (await hub.pathsInfo({ repo, paths: ["README.md", order.nested, "nothing"], revision: "v1", ...common })).map((f) => f.path),
  sha: (await hub.modelInfo({ name: order.name, revision: "v1", additionalFields: ["sha"], ...common })).sha,
  "sha of HEAD": (await hub.modelInfo({ name: order.name, additionalFields: ["sha"], ...common })).sha,
  commits: (await all(hub.listCommits({ repo, ...common }))).map((c) => c.oid),
  "of base": await names({ search: { tags: [`base_model:adapter:${order.base}`] } }),
  "of other": await names({ search: { tags: ["base_model:adapter:other"] } }),
  who: (await hub.whoAmI(common)).type,
  exists: [await hub.fileExists({ repo, path: order.weights, ...common }), await hub.fileExists({ repo, path: "nothing", ...common })],
  "no repository": await said(() => hub.modelInfo({ name: "acme/nothing", ...common })),
};
console.log(JSON.stringify(found));
