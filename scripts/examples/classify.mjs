// Classifies images by a file of `jaxslim export RUN --out net.onnx --uint8`, in a browser or in Node, with
// onnxruntime-web. classify.html shows how.

/** A network of the bytes of an ONNX file: what it takes, and the names of its classes. */
export async function load(ort, bytes) {
  const session = await ort.InferenceSession.create(bytes);
  const [[input], [output]] = [session.inputMetadata, session.outputMetadata];
  const described = ({ type, shape }) => `${type}[${shape}]`;
  const [, height, width, channels] = input.shape;
  if (input.type !== "uint8" || input.shape.length !== 4 || ![1, 3].includes(channels)) {
    throw Error(`The network takes ${described(input)} and no uint8 images; export it with --uint8.`);
  }
  if (output.type !== "float32" || output.shape.length !== 2) {
    throw Error(`The network gives ${described(output)} and no logits; export a classifier without --argmax.`);
  }
  const classes = output.shape[1];
  const named = JSON.parse(metadata(bytes).class_names ?? "[]");
  const names = named.length === classes ? named : Array.from({ length: classes }, (_, number) => `${number}`);
  return { session, height, width, channels, names };
}

/** Logits of an image: RGBA bytes without transparency, as a canvas gives them. */
export async function classify(ort, network, { data, width, height }) {
  const pixels = fit(data, width, height, network);
  const tensor = new ort.Tensor("uint8", pixels, [1, network.height, network.width, network.channels]);
  const outputs = await network.session.run({ [network.session.inputNames[0]]: tensor });
  return outputs[network.session.outputNames[0]].data;
}

/** Softmax. */
export function probabilities(logits) {
  const largest = Math.max(...logits);
  const powers = Array.from(logits, (logit) => Math.exp(logit - largest));
  const sum = powers.reduce((one, other) => one + other);
  return powers.map((power) => power / sum);
}

/** RGBA bytes in the network's size and channels, grey and scaled as Pillow does it: the network learned from such
 * images. Scaling is bilinear, and shrinking averages over all pixels, which a canvas does not promise. */
export function fit(data, width, height, network) {
  const { channels } = network;
  const pixels = new Uint8Array(width * height * channels);
  for (let from = 0, to = 0; from < data.length; from += 4, to += channels) {
    const [red, green, blue] = [data[from], data[from + 1], data[from + 2]];
    if (channels === 1) pixels[to] = (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16;
    else [pixels[to], pixels[to + 1], pixels[to + 2]] = [red, green, blue];
  }
  const narrow = along(pixels, height, width, channels, network.width);
  return along(narrow, 1, height, network.width * channels, network.height);
}

/** The middle axis of (outer, size, inner) bytes, scaled to another size. */
function along(bytes, outer, size, inner, newSize) {
  if (size === newSize) return bytes;
  // Weights are whole numbers, as Pillow's are, so that sums are rounded alike.
  const [scale, unit, result] = [size / newSize, 2 ** 22, new Uint8Array(outer * newSize * inner)];
  const reach = Math.max(scale, 1);
  for (let place = 0; place < newSize; place++) {
    const centre = (place + 0.5) * scale;
    const first = Math.max(Math.floor(centre - reach + 0.5), 0);
    const count = Math.min(Math.floor(centre + reach + 0.5), size) - first;
    const shares = Array.from({ length: count }, (_, step) => 1 - Math.abs(first + step + 0.5 - centre) / reach);
    const sum = shares.reduce((one, other) => one + other);
    const weights = shares.map((share) => Math.floor((share / sum) * unit + 0.5));
    for (let row = 0; row < outer; row++) {
      for (let column = 0; column < inner; column++) {
        const start = (row * size + first) * inner + column;
        let value = unit / 2;
        for (let step = 0; step < count; step++) value += weights[step] * bytes[start + step * inner];
        result[(row * newSize + place) * inner + column] = Math.min(Math.floor(value / unit), 255);
      }
    }
  }
  return result;
}

/** The texts that an ONNX file keeps by name: fields 14 of its protobuf message, each a name (1) and a value (2). */
function metadata(bytes) {
  const text = (part) => new TextDecoder().decode(part);
  const entries = parts(bytes).filter(([field]) => field === 14);
  return Object.fromEntries(entries.map(([, entry]) => parts(entry).map(([, part]) => text(part))));
}

/** The fields of a protobuf message that have a length, with their numbers. */
function parts(bytes) {
  const found = [];
  let at = 0;
  const number = () => {
    let [value, unit] = [0, 1];
    for (; bytes[at] >= 128; at++, unit *= 128) value += (bytes[at] - 128) * unit;
    return value + bytes[at++] * unit;
  };
  while (at < bytes.length) {
    const [tag, value] = [number(), number()];
    if (tag % 8 !== 2) continue; // the other fields are plain numbers
    found.push([tag >> 3, bytes.subarray(at, at + value)]);
    at += value;
  }
  return found;
}
