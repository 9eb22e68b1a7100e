// Direction of words: canvas and SVG do not detect it.

const LETTER = /\p{L}/u;
const LEFTWARDS = /[\p{Script=Hebrew}\p{Script=Arabic}\p{Script=Syriac}\p{Script=Thaana}\p{Script=Nko}\p{Script=Samaritan}\p{Script=Mandaic}\p{Script=Adlam}\p{Script=Hanifi_Rohingya}]/u;

// "rtl" or "ltr" by the first letter, as dir=auto does; null where there is none (numbers, marks).
export function directionOf(text) {
  const [letter] = LETTER.exec(text) ?? [null];
  return letter === null ? null : LEFTWARDS.test(letter) ? "rtl" : "ltr";
}

// A word inside a line that runs from left to right: one of the other direction keeps its marks to itself.
export function apart(word) {
  return directionOf(word) === "rtl" ? `\u2068${word}\u2069` : word;
}

// The words of one line from left to right, as places in it. Words without a direction go with those on both sides where these
// agree, otherwise with the text (Unicode's rules N1 and N2); words against the text's direction keep their own order (L2).
export function fromTheLeft(directions, text) {
  const strong = (places) => places.find((i) => directions[i] !== null);
  const settled = directions.map((own, i) => {
    if (own !== null) return own;
    const all = [...directions.keys()], before = strong(all.slice(0, i).reverse()), after = strong(all.slice(i + 1));
    const [left, right] = [before, after].map((one) => (one === undefined ? text : directions[one]));
    return left === right ? left : text;
  });
  const runs = [];
  settled.forEach((direction, i) => {
    if (runs.at(-1)?.direction === direction) runs.at(-1).places.push(i); else runs.push({ direction, places: [i] });
  });
  for (const { direction, places } of runs) if (direction === "rtl") places.reverse();
  return (text === "rtl" ? runs.reverse() : runs).flatMap(({ places }) => places);
}
