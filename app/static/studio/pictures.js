/** Finished pictures, fetched with the key and kept as object addresses as long as the page lives. */

export function createPictures(api) {
  const kept = new Map();

  /** {blob, url} of a picture's path. Raises what the API raises. */
  function fetched(path) {
    if (!kept.has(path)) {
      const coming = api.picture(path).then((blob) => ({ blob, url: URL.createObjectURL(blob) }));
      coming.catch(() => kept.delete(path)); // the next one who asks tries again
      kept.set(path, coming);
    }
    return kept.get(path);
  }

  return {
    fetched,
    /** Lets go of the pictures of a job. */
    async forget(document) {
      for (const { url } of document.images) {
        const coming = kept.get(url);
        kept.delete(url);
        coming?.then((picture) => URL.revokeObjectURL(picture.url)).catch(() => {});
      }
    },
  };
}
