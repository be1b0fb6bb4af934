// Draws one dashboard from its JSON and the answers of a Prometheus, both put into the page as
// `window.job` by pictures.py. Panels are Grafana's own components; only the heatmap's cells are
// drawn here, because Grafana keeps that panel out of @grafana/ui.
import '@fontsource/inter/latin-400.css';
import '@fontsource/inter/latin-500.css';
import { createRoot } from 'react-dom/client';
import { EventBusSrv, createTheme, dateTimeForTimeZone, type TimeRange } from '@grafana/data';
import { GlobalStyles, PanelChrome, PanelContextProvider, ThemeContext } from '@grafana/ui';
import { Body } from './panels';
import { frames, type Answer } from './frames';

interface Job {
  dashboard: any;
  answers: Record<string, Answer[]>;
  steps: Record<string, number>;
  from: number;
  to: number;
  width: number;
}

declare global {
  interface Window {
    job: Job;
  }
}

const job = window.job;
const theme = createTheme({ colors: { mode: 'dark' } });
const CELL = 30;
const GAP = 8;
const column = (job.width - 2 * GAP + GAP) / 24;
const at = (ms: number) => dateTimeForTimeZone('utc', ms);
const timeRange: TimeRange = {
  from: at(job.from),
  to: at(job.to),
  raw: { from: at(job.from), to: at(job.to) },
};

function place({ x, y, w, h }: { x: number; y: number; w: number; h: number }) {
  return {
    left: GAP + x * column,
    top: y * (CELL + GAP),
    width: w * column - GAP,
    height: h * (CELL + GAP) - GAP,
  };
}

function Panel({ panel }: { panel: any }) {
  const box = place(panel.gridPos);
  if (panel.type === 'row') {
    return (
      <div style={{ position: 'absolute', ...box, ...theme.typography.h5, lineHeight: `${box.height}px` }}>
        {panel.title}
      </div>
    );
  }
  const data = frames(panel, job.answers[panel.id] ?? [], theme);
  return (
    <div style={{ position: 'absolute', ...box }} data-panel={panel.title}>
      <PanelChrome
        title={panel.title}
        description={panel.description}
        width={box.width}
        height={box.height}
        padding={panel.type === 'table' ? 'none' : 'md'}
      >
        {(width, height) => (
          <Body panel={panel} frames={data} width={width} height={height} timeRange={timeRange} theme={theme} />
        )}
      </PanelChrome>
    </div>
  );
}

const variables = (job.dashboard.templating.list as any[]).filter((variable) => variable.hide !== 2);

function Header() {
  return (
    <div style={{ padding: GAP * 2, height: 84, boxSizing: 'border-box' }}>
      <div style={theme.typography.h4}>{job.dashboard.title}</div>
      <div style={{ display: 'flex', gap: 16, color: theme.colors.text.secondary, fontSize: 12 }}>
        {variables.map((variable) => (
          <span key={variable.name}>
            {variable.label}: <b>{variable.type === 'datasource' ? 'Prometheus' : 'All'}</b>
          </span>
        ))}
      </div>
    </div>
  );
}

const bus = new EventBusSrv();
const context = { eventsScope: 'streaq', eventBus: bus, sync: () => 0, app: 'dashboard' } as any;
const bottom = Math.max(...job.dashboard.panels.map((panel: any) => panel.gridPos.y + panel.gridPos.h));

const page = (
  <ThemeContext.Provider value={theme}>
    <GlobalStyles />
    <PanelContextProvider value={context}>
      <div style={{ width: job.width, background: theme.colors.background.canvas }}>
        <Header />
        <div style={{ position: 'relative', height: bottom * (CELL + GAP) + GAP }}>
          {job.dashboard.panels.map((panel: any) => (
            <Panel key={panel.id} panel={panel} />
          ))}
        </div>
      </div>
    </PanelContextProvider>
  </ThemeContext.Provider>
);

// Components measure text while they draw, so the font has to be there first.
Promise.all([400, 500].map((weight) => document.fonts.load(`${weight} 14px Inter`))).then(() =>
  createRoot(document.getElementById('root')!).render(page)
);
