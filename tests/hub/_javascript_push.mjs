// Runs with @huggingface/hub: pushes a folder in two commits, prints the responses as one JSON line.
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import * as hub from "@huggingface/hub";

const order = JSON.parse(process.argv[2]);
const common = { hubUrl: process.env.HF_ENDPOINT, accessToken: `hf_${process.env.HF_TOKEN}` };
const repo = { type: "model", name: order.name };
const file = async (path) => ({ path, content: new Blob([await readFile(join(order.folder, path))]) });
const all = async (items) => { const found = []; for await (const item of items) found.push(item); return found; };
const errorOf = async (call) => { try { return ["", String(await call())]; } catch (e) { return [String(e.statusCode ?? e.name), String(e.message)]; } };

const created = await hub.createRepo({ repo, ...common });
await hub.uploadFile({ repo, file: await file("README.md"), ...common });
const drafted = (await all(hub.listFiles({ repo, ...common }))).map((f) => f.path);
const files = await Promise.all(["README.md", "adapter_config.json", "adapter_model.safetensors"].map(file));
const pushed = await hub.uploadFiles({ repo, files, title: "Train", ...common });
const blob = await hub.downloadFile({ repo, path: "adapter_model.safetensors", ...common });
const pulled = Buffer.from(await blob.arrayBuffer()).equals(await readFile(join(order.folder, "adapter_model.safetensors")));
const deleted = await hub.deleteFile({ repo, path: "README.md", ...common });
const responses = {
  url: created.repoUrl,
  drafted,
  pulled,
  pushed: pushed.commit.oid,
  deleted: deleted.commit.oid,
  files: (await all(hub.listFiles({ repo, ...common }))).map((f) => f.path),
  pickle: await errorOf(async () => hub.uploadFile({ repo, file: await file("training_args.bin"), ...common })),
  model: await errorOf(async () => hub.uploadFile({ repo, file: { path: "model.safetensors", content: new Blob(["x"]) }, ...common })),
};
console.log(JSON.stringify(responses));
