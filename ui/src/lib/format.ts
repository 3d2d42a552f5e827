// Sizes and ages as people read them.

/** MiB as text: `512 MB`, `4 GB`, `1.5 GB`. */
export function megabytes(mib: number): string {
  if (mib < 1024) return `${mib} MB`;
  const gib = mib / 1024;
  return `${Number.isInteger(gib) ? gib : gib.toFixed(1)} GB`;
}

/** How long ago, in its largest unit: `12 s`, `3 min`, `5 h`, `2 d`. */
export function age(since: Date, now: Date): string {
  const seconds = Math.max(0, Math.floor((now.getTime() - since.getTime()) / 1000));
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h`;
  return `${Math.floor(seconds / 86400)} d`;
}
