// What a dashboard of ours may hold, in the types that Grafana publishes. Its enums are written as
// plain strings in JSON, so `Loose` takes both; everything else is taken as it is, and an
// option that Grafana does not know is an error.
import type { AnnotationQuery, Dashboard, FieldConfig, Panel, RowPanel, VariableModel } from '@grafana/schema';
import type * as bargauge from '@grafana/schema/dist/esm/raw/composable/bargauge/panelcfg/x/BarGaugePanelCfg_types.gen';
import type * as heatmap from '@grafana/schema/dist/esm/raw/composable/heatmap/panelcfg/x/HeatmapPanelCfg_types.gen';
import type * as stat from '@grafana/schema/dist/esm/raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen';
import type * as table from '@grafana/schema/dist/esm/raw/composable/table/panelcfg/x/TablePanelCfg_types.gen';
import type * as timeseries from '@grafana/schema/dist/esm/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen';

type Loose<T> = unknown extends T
  ? T
  : T extends string
    ? `${T}`
    : T extends Array<infer Item>
      ? Array<Loose<Item>>
      : T extends object
        ? { [Key in keyof T]: Loose<T[Key]> }
        : T;

// Grafana keeps this one in its Prometheus plugin, which is not on npm as types.
interface PrometheusTarget {
  refId: string;
  datasource: { type: 'prometheus'; uid: string };
  editorMode: 'code' | 'builder';
  exemplar: boolean;
  expr: string;
  format: 'time_series' | 'table' | 'heatmap';
  instant: boolean;
  legendFormat: string;
  range: boolean;
}

type Of<Type extends string, Options, Custom> = Loose<
  Omit<Panel, 'type' | 'options' | 'targets' | 'fieldConfig'> & {
    options: Options;
    fieldConfig: {
      defaults: Omit<FieldConfig, 'custom'> & { custom?: Custom };
      overrides: NonNullable<Panel['fieldConfig']>['overrides'];
    };
  }
> & { type: Type; targets: PrometheusTarget[] };

export type AnyPanel =
  | Of<'timeseries', timeseries.Options, timeseries.FieldConfig>
  | Of<'stat', stat.Options, never>
  | Of<'table', table.Options, table.FieldConfig>
  | Of<'heatmap', heatmap.Options, heatmap.FieldConfig>
  | Of<'bargauge', bargauge.Options, never>
  | Loose<RowPanel>;

type Annotation = Omit<Loose<AnnotationQuery>, 'target'> & {
  target: { refId: string; expr: string; interval: string };
  titleFormat: string;
  textFormat: string;
};

export type AnyDashboard = Loose<Omit<Dashboard, 'panels' | 'annotations' | 'templating'>> & {
  panels: AnyPanel[];
  annotations: { list: Annotation[] };
  templating: { list: Array<Loose<VariableModel>> };
};
