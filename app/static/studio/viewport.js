/** Where a picture lies on the screen: `screen = scale * picture + (x, y)`. Pure. */

const LEAST_SCALE = 0.05;
const MOST_SCALE = 40;

/** The view in which the box {x, y, width, height} of the picture fills the area, with a rim around it. */
export function fitted(box, area, rim) {
  const room = { width: Math.max(1, area.width - 2 * rim), height: Math.max(1, area.height - 2 * rim) };
  const scale = Math.min(room.width / box.width, room.height / box.height);
  return {
    scale,
    x: (area.width - scale * box.width) / 2 - scale * box.x,
    y: (area.height - scale * box.height) / 2 - scale * box.y,
  };
}

/** Larger or smaller by a factor, with the point of the screen staying where it is. */
export function zoomed(view, factor, point) {
  const scale = Math.min(MOST_SCALE, Math.max(LEAST_SCALE, view.scale * factor));
  const ratio = scale / view.scale;
  return { scale, x: point.x - ratio * (point.x - view.x), y: point.y - ratio * (point.y - view.y) };
}

export function moved(view, by) {
  return { ...view, x: view.x + by.x, y: view.y + by.y };
}

export function toPicture(view, point) {
  return { x: (point.x - view.x) / view.scale, y: (point.y - view.y) / view.scale };
}

export function toScreen(view, point) {
  return { x: view.scale * point.x + view.x, y: view.scale * point.y + view.y };
}
