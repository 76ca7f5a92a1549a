/** JSON whose seeds keep every digit: a seed may have 63 bits, a number in a browser has 53. */

/** Reads a document. Seeds too large for a number become texts. */
export function readExact(text) {
  return JSON.parse(text.replace(/"seed":\s*(\d{16,})/g, '"seed":"$1"'));
}

/** Writes a document whose seeds may be texts. */
export function writeExact(value, space = 0) {
  return JSON.stringify(value, null, space).replace(/"seed":(\s?)"(\d{16,})"/g, '"seed":$1$2');
}
