// Answers can overtake one another: only what was asked last may be painted.

// const ask = newest(); const still = ask(); … await …; if (!still()) return;
export function newest() {
  let last = 0;
  return () => {
    const mine = ++last;
    return () => mine === last;
  };
}
