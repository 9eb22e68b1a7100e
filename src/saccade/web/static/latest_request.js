// Responses can arrive out of order: only the latest request may be painted.

// const ask = latest(); const still = ask(); … await …; if (!still()) return;
export function latest() {
  let last = 0;
  return () => {
    const mine = ++last;
    return () => mine === last;
  };
}
