// Draws DiceBear avatars: node avatars.mjs MODULES STYLE < seeds.json > drawings.json
//
// MODULES is a node_modules folder with @dicebear/core and @dicebear/STYLE. Standard input is a JSON list of seeds,
// standard output a JSON list of SVG texts in the same order. A seed always draws the same avatar.

import { readFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { pathToFileURL } from "node:url";

const [modules, style] = process.argv.slice(2);
const load = (name) => import(pathToFileURL(join(resolve(modules), "@dicebear", name, "lib", "index.js")).href);
const [{ createAvatar }, drawing] = await Promise.all([load("core"), load(style)]);

const seeds = JSON.parse(readFileSync(0, "utf8"));
const drawings = seeds.map((seed) => createAvatar(drawing, { seed, backgroundColor: ["transparent"] }).toString());
process.stdout.write(JSON.stringify(drawings));
