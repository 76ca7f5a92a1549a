/**
 * The texts in a picture file: `denoised`, the recipe as JSON, and `parameters`, the lines that other tools write.
 *
 *   PNG          tEXt, zTXt and iTXt chunks of these names
 *   JPEG, WebP   EXIF ImageDescription (`denoised`) and UserComment (`parameters`)
 *
 * Only the texts are read, never the pixels. A damaged file has the texts that come before the damage.
 */

const PNG_SIGNATURE = "\x89PNG\r\n\x1a\n";
const IMAGE_DESCRIPTION = 0x010e;
const EXIF_FOLDER = 0x8769;
const USER_COMMENT = 0x9286;
const LONGEST_TEXT = 2 ** 20;

/** {denoised, parameters} of a file, each a text or undefined. */
export async function textsOf(file) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  try {
    if (latin(bytes, 0, 8) === PNG_SIGNATURE) return await pngTexts(bytes);
    if (bytes[0] === 0xff && bytes[1] === 0xd8) return exifTexts(jpegExif(bytes));
    if (latin(bytes, 0, 4) === "RIFF" && latin(bytes, 8, 12) === "WEBP") return exifTexts(webpExif(bytes));
  } catch (error) {
    if (!(error instanceof RangeError || error instanceof TypeError)) throw error; // ends too early, or is no zlib
  }
  return {};
}

/** A character a byte. A TextDecoder's "latin1" is another code, windows-1252. */
function latin(bytes, start = 0, end = bytes.length) {
  return Array.from(bytes.subarray(start, end), (byte) => String.fromCharCode(byte)).join("");
}

function utf8(bytes) {
  return new TextDecoder().decode(bytes);
}

function viewOf(bytes) {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

// --- PNG ---------------------------------------------------------------------------------------------------------

async function pngTexts(bytes) {
  const texts = {};
  for (const { type, data } of pngChunks(bytes)) {
    const reader = { tEXt: plainText, zTXt: packedText, iTXt: internationalText }[type];
    const [keyword, text] = reader ? await reader(data) : [];
    if (keyword === "denoised" || keyword === "parameters") texts[keyword] ??= text;
  }
  return texts;
}

function* pngChunks(bytes) {
  const view = viewOf(bytes);
  for (let at = 8; at + 12 <= bytes.length; ) {
    const length = view.getUint32(at);
    yield { type: latin(bytes, at + 4, at + 8), data: bytes.subarray(at + 8, at + 8 + length) };
    at += length + 12;
  }
}

function plainText(data) {
  const end = data.indexOf(0);
  return [latin(data, 0, end), latin(data, end + 1)];
}

async function packedText(data) {
  const end = data.indexOf(0);
  return [latin(data, 0, end), latin(await unpacked(data.subarray(end + 2)))];
}

/** Keyword, 0, is packed, 0, language, 0, keyword in that language, 0, text. */
async function internationalText(data) {
  const end = data.indexOf(0);
  const afterLanguage = data.indexOf(0, end + 3) + 1;
  const content = data.subarray(data.indexOf(0, afterLanguage) + 1);
  return [latin(data, 0, end), utf8(data[end + 1] ? await unpacked(content) : content)];
}

async function unpacked(data) {
  const reader = new Blob([data]).stream().pipeThrough(new DecompressionStream("deflate")).getReader();
  const parts = [];
  for (let length = 0; length < LONGEST_TEXT; ) {
    const { value, done } = await reader.read();
    if (done) break;
    parts.push(value);
    length += value.length;
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

// --- EXIF --------------------------------------------------------------------------------------------------------

function jpegExif(bytes) {
  const view = viewOf(bytes);
  for (let at = 2; at + 4 < bytes.length && bytes[at] === 0xff && bytes[at + 1] !== 0xda; ) {
    const end = at + 2 + view.getUint16(at + 2);
    if (bytes[at + 1] === 0xe1 && latin(bytes, at + 4, at + 10) === "Exif\0\0") return bytes.subarray(at + 10, end);
    at = end;
  }
  return null;
}

function webpExif(bytes) {
  const view = viewOf(bytes);
  for (let at = 12; at + 8 <= bytes.length; ) {
    const length = view.getUint32(at + 4, true);
    const data = bytes.subarray(at + 8, at + 8 + length);
    if (latin(bytes, at, at + 4) === "EXIF") return latin(data, 0, 6) === "Exif\0\0" ? data.subarray(6) : data;
    at += 8 + length + (length % 2);
  }
  return null;
}

function exifTexts(exif) {
  if (!exif) return {};
  const isLittle = latin(exif, 0, 2) === "II";
  const first = entries(exif, viewOf(exif).getUint32(4, isLittle), isLittle);
  const folder = first.get(EXIF_FOLDER);
  const second = folder ? entries(exif, folder.offset, isLittle) : new Map();
  const description = first.get(IMAGE_DESCRIPTION)?.data;
  const comment = second.get(USER_COMMENT)?.data;
  return {
    denoised: description && utf8(description).replace(/\0.*$/s, ""),
    parameters: comment && commentText(comment, isLittle),
  };
}

/** Entries of one directory by their tag. */
function entries(exif, start, isLittle) {
  const view = viewOf(exif);
  const found = new Map();
  for (let index = 0; index < view.getUint16(start, isLittle); index += 1) {
    const at = start + 2 + 12 * index;
    const count = view.getUint32(at + 4, isLittle);
    const offset = view.getUint32(at + 8, isLittle);
    const from = count > 4 ? offset : at + 8; // texts, a byte a character
    found.set(view.getUint16(at, isLittle), { offset, data: exif.subarray(from, from + count) });
  }
  return found;
}

/** Eight bytes say how the rest is written. We write big-endian; tools that write the file's own order are read, too. */
function commentText(data, isLittle) {
  const content = data.subarray(8);
  if (latin(data, 0, 7) !== "UNICODE") return utf8(content).replace(/\0+$/, "");
  const asBig = new TextDecoder("utf-16be").decode(content);
  const isTurned = isLittle && content.length > 1 && content[0] !== 0 && content[1] === 0;
  return isTurned ? new TextDecoder("utf-16le").decode(content) : asBig;
}
