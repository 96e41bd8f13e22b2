package app

import (
	"fairlead/sidecar/config"
	"fairlead/sidecar/doctor"
)

// DoctorParts makes what tunnels are made with, for the doctor.
func DoctorParts(cfg config.Config) (doctor.Parts, error) {
	dialer, err := newDialer(cfg)
	if err != nil {
		return doctor.Parts{}, err
	}
	return doctor.Parts{Dialer: dialer, Link: linkConfig(cfg, nil), Token: func() (string, error) {
		source, err := newTokenSource(cfg.Gateway)
		if err != nil {
			return "", err
		}
		return source.get()
	}}, nil
}
