/**
 * What this browser remembers: its jobs, and the pictures that they began with.
 *
 * Without IndexedDB (some private windows) everything works, and nothing is remembered.
 */

const NAME = "denoised-studio";
const STORES = ["jobs", "sources"];

export async function openDatabase() {
  try {
    return stores(await opened());
  } catch {
    return stores(null);
  }
}

function opened() {
  const request = indexedDB.open(NAME, 1);
  request.addEventListener("upgradeneeded", () => {
    for (const store of STORES) request.result.createObjectStore(store, { keyPath: "id" });
  });
  return settled(request);
}

function settled(request) {
  return new Promise((resolve, reject) => {
    request.addEventListener("success", () => resolve(request.result));
    request.addEventListener("error", () => reject(request.error));
  });
}

function stores(database) {
  return {
    isLasting: database !== null,
    ...Object.fromEntries(STORES.map((name) => [name, database ? storeOf(database, name) : forgetful()])),
  };
}

function storeOf(database, name) {
  const within = (mode, work) => settled(work(database.transaction(name, mode).objectStore(name)));
  return {
    all: () => within("readonly", (store) => store.getAll()),
    get: (id) => within("readonly", (store) => store.get(id)),
    put: (value) => within("readwrite", (store) => store.put(value)),
    delete: (id) => within("readwrite", (store) => store.delete(id)),
  };
}

function forgetful() {
  const values = new Map();
  return {
    all: async () => [...values.values()],
    get: async (id) => values.get(id),
    put: async (value) => void values.set(value.id, value),
    delete: async (id) => void values.delete(id),
  };
}
