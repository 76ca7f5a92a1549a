/** What the user has chosen, remembered in this browser. Values are texts, as they stand in the fields. */

const NAME = "denoised.form";

export function createSettings() {
  const stored = read();
  const scopes = stored.scopes ?? {};
  const state = { task: stored.task ?? "text-to-image", models: stored.models ?? {}, scopes };

  function keep() {
    try {
      localStorage.setItem(NAME, JSON.stringify(state));
    } catch {
      // a full or forbidden store costs only the memory
    }
  }

  return {
    get task() {
      return state.task;
    },
    set task(task) {
      state.task = task;
      keep();
    },
    modelFor: (task) => state.models[task],
    chooseModel(task, name) {
      state.models[task] = name;
      keep();
    },
    /** The value of a name in a scope; undefined when nobody has touched it. */
    get: (scope, name) => scopes[scope]?.[name],
    set(scope, name, value) {
      scopes[scope] ??= {};
      scopes[scope][name] = value;
      keep();
    },
    clear(scope, name) {
      delete scopes[scope]?.[name];
      keep();
    },
  };
}

function read() {
  try {
    return JSON.parse(localStorage.getItem(NAME)) ?? {};
  } catch {
    return {};
  }
}
