/** Writes PNG files whose pixels are numbers of objects, each shown in its own colour. */

const SIGNATURE = [137, 80, 78, 71, 13, 10, 26, 10];

/** @type {Uint32Array | null} */
let table = null;

/**
 * Encode an indexed image of 8 bits.
 * @param {Uint8Array} pixels row by row.
 * @param {number} width
 * @param {number} height
 * @param {number[][]} palette red, green, blue of each number.
 * @returns {Promise<Blob>}
 */
export async function indexedPng(pixels, width, height, palette) {
  const rows = new Uint8Array((width + 1) * height); // each begins with 0: no filter
  for (let y = 0; y < height; y++) rows.set(pixels.subarray(y * width, (y + 1) * width), y * (width + 1) + 1);
  const packed = await new Response(new Blob([rows]).stream().pipeThrough(new CompressionStream("deflate"))).arrayBuffer();
  const header = new Uint8Array(13);
  const view = new DataView(header.buffer);
  view.setUint32(0, width);
  view.setUint32(4, height);
  header.set([8, 3, 0, 0, 0], 8); // 8 bits, indexed
  return new Blob(
    [
      new Uint8Array(SIGNATURE),
      chunk("IHDR", header),
      chunk("PLTE", Uint8Array.from(palette.flat())),
      chunk("IDAT", new Uint8Array(packed)),
      chunk("IEND", new Uint8Array()),
    ],
    { type: "image/png" },
  );
}

/**
 * @param {string} kind
 * @param {Uint8Array} data
 */
function chunk(kind, data) {
  const whole = new Uint8Array(12 + data.length);
  const view = new DataView(whole.buffer);
  view.setUint32(0, data.length);
  whole.set([...kind].map((letter) => letter.charCodeAt(0)), 4);
  whole.set(data, 8);
  view.setUint32(8 + data.length, checksum(whole.subarray(4, 8 + data.length)));
  return whole;
}

/** @param {Uint8Array} bytes */
function checksum(bytes) {
  table ??= Uint32Array.from({ length: 256 }, (_, value) => {
    for (let bit = 0; bit < 8; bit++) value = value & 1 ? 0xedb88320 ^ (value >>> 1) : value >>> 1;
    return value;
  });
  let sum = 0xffffffff;
  for (const byte of bytes) sum = table[(sum ^ byte) & 255] ^ (sum >>> 8);
  return (sum ^ 0xffffffff) >>> 0;
}
