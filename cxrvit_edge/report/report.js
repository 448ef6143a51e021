'use strict';
(() => {
  const at = (id) => document.getElementById(id);
  const root = document.documentElement, body = document.querySelector('#worklist tbody');
  const rows = Array.from(body.rows), bar = document.querySelector('.bar'), viewer = at('viewer');
  const rank = (row) => Number(row.cells[0].textContent);
  const film = (row) => row.querySelector('.im');
  let open = null;

  // filter and sort
  const texts = new Map();
  const text = (row) => {
    if (!texts.has(row)) texts.set(row, row.textContent.toLowerCase());
    return texts.get(row);
  };
  function filter() {
    const priorities = new Set(Array.from(bar.querySelectorAll('fieldset input:checked'), (box) => box.value));
    const words = at('search').value.toLowerCase().split(/\s+/).filter(Boolean), status = at('status').value;
    let shown = 0;
    for (const row of rows) {
      const fits = priorities.has(row.dataset.p) && (!status || row.dataset.s === status) &&
        words.every((word) => text(row).includes(word));
      row.hidden = !fits;
      shown += fits;
    }
    at('shown').textContent = shown + ' of ' + rows.length + ' shown';
    document.body.classList.toggle('filtered', shown < rows.length);
  }
  const score = (row) => Number((row.querySelector('.score') || {dataset: {}}).dataset.v || -1);
  const name = (row) => row.querySelector('th').textContent;
  const collator = new Intl.Collator('en', {numeric: true});
  const orders = {
    rank: (a, b) => rank(a) - rank(b),
    score: (a, b) => score(b) - score(a) || rank(a) - rank(b),
    file: (a, b) => collator.compare(name(a), name(b)) || rank(a) - rank(b),
  };
  function sort() {
    rows.sort(orders[at('sort').value]);
    body.append(...rows);
  }
  let timer = 0;
  at('search').addEventListener('input', () => { clearTimeout(timer); timer = setTimeout(filter, 120); });
  at('status').addEventListener('change', filter);
  bar.querySelector('fieldset').addEventListener('change', filter);
  at('sort').addEventListener('change', sort);
  bar.addEventListener('submit', (event) => event.preventDefault());

  // severity overlay: all rows, one row
  function setMap(row, on) {
    row.classList.toggle('nomap', !on);
    const button = row.querySelector('.tog');
    if (button) button.textContent = on ? 'hide overlay' : 'show overlay';
  }
  at('maps').addEventListener('change', () => rows.forEach((row) => setMap(row, at('maps').checked)));
  at('opacity').addEventListener('input', () => root.style.setProperty('--overlay', at('opacity').value / 100));

  // enlarge
  const films = () => rows.filter((row) => !row.hidden && film(row));
  function part(row, selector, title) {
    const found = row.querySelector(selector);
    if (!found) return [];
    const block = document.createElement('div'), what = document.createElement('span');
    what.className = 'what';
    what.textContent = title;
    const cell = /^T[DH]$/.test(found.tagName), copy = found.cloneNode(true);
    block.className = cell ? found.className : '';
    block.append(...(title ? [what] : []), ...(cell ? copy.childNodes : [copy]));
    return [block];
  }
  function show(row) {
    open = row;
    const list = films(), i = list.indexOf(row), panel = viewer.querySelector('.panel'), image = film(row).cloneNode(true);
    ['tabindex', 'role', 'aria-label'].forEach((name) => image.removeAttribute(name));
    viewer.querySelector('.big').replaceChildren(image);
    panel.className = 'panel ' + row.dataset.p;
    panel.replaceChildren(...part(row, '.chip', ''), ...part(row, 'th', 'Rank ' + rank(row)), ...part(row, 'p.cap', ''), ...part(row, '.view', 'View'),
      ...part(row, '.find', ''), ...part(row, '.why', ''), ...part(row, '.score', 'Score'), ...part(row, '.zones', 'Zones'),
      ...part(row, '.rel', ''));
    at('before').disabled = i < 1;
    at('after').disabled = i === list.length - 1;
    if (!viewer.open) {
      at('bigmap').checked = !row.classList.contains('nomap');
      viewer.showModal();
    }
    viewer.classList.toggle('nomap', !at('bigmap').checked);
  }
  function step(by) {
    const list = films(), next = list[list.indexOf(open) + by];
    if (next) show(next);
  }
  at('bigmap').addEventListener('change', () => viewer.classList.toggle('nomap', !at('bigmap').checked));
  at('before').addEventListener('click', () => step(-1));
  at('after').addEventListener('click', () => step(1));
  at('close').addEventListener('click', () => viewer.close());
  viewer.addEventListener('click', (event) => { if (event.target === viewer) viewer.close(); });
  viewer.addEventListener('keydown', (event) => {
    const by = {ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1}[event.key];
    if (!by) return;
    event.preventDefault();
    step(by);
  });
  viewer.addEventListener('close', () => film(open).focus());
  for (const row of films()) {
    const image = film(row);
    image.tabIndex = 0;
    image.setAttribute('role', 'button');
    image.setAttribute('aria-label', 'Enlarge the image of rank ' + rank(row));
    image.addEventListener('click', () => show(row));
    image.addEventListener('keydown', (event) => {
      if (event.key === 'Enter' || event.key === ' ') { event.preventDefault(); show(row); }
    });
    if (!image.querySelector('.map')) continue;
    const button = document.createElement('button');
    button.type = 'button';
    button.className = 'tog';
    button.addEventListener('click', () => setMap(row, row.classList.contains('nomap')));
    image.after(button);
    setMap(row, true);
  }
  addEventListener('beforeprint', () => { at('legend').open = true; });
  bar.hidden = false;
  filter();
})();
